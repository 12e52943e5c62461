"""The app: what it finds, what it makes, who may reach it, and that sessions are apart."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import Client

from diffusion_adapters import add_adapter, load_adapter, save_adapter, set_adapters
from tests.hosts import stir
from tests.tiny import save_pipeline
from ui.__main__ import main
from ui.app import build, open_page
from ui.bases import Base
from ui.library import Library, hide_folders
from ui.request import Request
from ui.studio import StoppedError, Studio, Turn

SETTINGS: dict[str, Any] = {"prompt": "a photo of sks cat", "seed": 3, "steps": 3, "guidance_scale": 2.0}
USABLE = ("dreambooth-red", "dreambooth-blue")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a library of two sound adapters, a truncated one, one of another base, and files of others."""
    root = tmp_path_factory.mktemp("ui")
    base = save_pipeline(root / "base")
    library = root / "library"
    library.mkdir()
    pipe = DiffusionPipeline.from_pretrained(base)
    for seed, name in enumerate(("red", "blue")):
        own = add_adapter(pipe, name, "lora").of(name).values()
        stir([value for adapter in own for value in adapter.parameters()], seed=seed, strength=0.6)
        save_adapter(pipe, name, library / f"dreambooth-{name}" / "adapter.safetensors", trigger=f"a {name} cat")
    sound = (library / "dreambooth-red" / "adapter.safetensors").read_bytes()
    (library / "broken.safetensors").write_bytes(sound[: len(sound) // 2])
    (library / "other.safetensors").write_bytes((base / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    (library / "notes.txt").write_text("not an adapter")
    return root


@pytest.fixture(scope="module")
def app(root: Path) -> Iterator[tuple[Studio, Library, str]]:
    """The served app."""
    library = Library([root / "library"])
    studio = Studio([Base.of(str(root / "base"))], library)
    library.scan(studio.base())
    page = build(studio)
    _, url, _ = open_page(page, prevent_thread_lock=True)
    yield studio, library, url
    page.close()


def pixels(image: Image.Image | str) -> np.ndarray:
    return np.asarray(image if isinstance(image, Image.Image) else Image.open(image).convert("RGB"))


def ask(client: Client, adapters: dict[str, float], **changes: Any) -> list[np.ndarray]:
    """Pictures from the app's own interface for programs."""
    values = {**SETTINGS, **changes}
    made = client.predict(**values, adapters=adapters, api_name="/generate")
    return [pixels(item["image"]) for item in made]


@pytest.fixture(scope="module")
def direct(root: Path) -> Callable[..., np.ndarray]:
    """Makes the same picture by the library alone."""
    pipe = DiffusionPipeline.from_pretrained(root / "base")
    for name in USABLE:
        load_adapter(pipe, root / "library" / name / "adapter.safetensors", name)

    def make(weights: dict[str, float], seed: int = SETTINGS["seed"]) -> np.ndarray:
        set_adapters(pipe, list(weights), weights)
        made = pipe(
            SETTINGS["prompt"], num_inference_steps=SETTINGS["steps"], guidance_scale=SETTINGS["guidance_scale"],
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return pixels(made.images[0])

    return make


def test_library_lists_ours_and_says_why_others_are_refused(app: tuple[Studio, Library, str], root: Path) -> None:
    entries = {entry.name: entry for entry in app[1].scan(app[0].base())}
    assert list(entries) == ["broken", "dreambooth-blue", "dreambooth-red"]
    assert entries["broken"].report is None
    assert "broken.safetensors" in entries["broken"].reason
    assert str(root) not in entries["broken"].reason
    red = entries["dreambooth-red"].describe()
    assert red == {
        "name": "dreambooth-red", "family": "lora", "trigger": "a red cat", "base": "UNet2DConditionModel base",
        "domains": [], "refused": None,
    }  # fmt: skip


def test_library_refuses_an_adapter_of_another_base_and_takes_up_new_files(root: Path, tmp_path: Path) -> None:
    base, library = Base.of(str(root / "base")), Library([tmp_path])
    assert library.scan(base) == []
    source = (root / "library" / "dreambooth-red" / "adapter.safetensors").read_bytes()
    (tmp_path / "pet.v1.safetensors").write_bytes(source)
    (first,) = library.scan(base)
    assert (first.name, first.trigger) == ("pet_v1", "a red cat")
    (tmp_path / "pet.v1.safetensors").write_bytes(source.replace(b"to_q", b"to_x"))
    (second,) = library.scan(base)
    assert second.report is None
    assert "made for another base" in second.reason
    with pytest.raises(ValueError, match=r"pet_v1 is refused: .*another base"):
        library.find("pet_v1", base)


def test_pictures_are_those_of_the_library(app: tuple[Studio, Library, str], direct: Callable[..., np.ndarray]) -> None:
    client = Client(app[2], verbose=False, analytics_enabled=False)
    base, (red, blue) = direct({}), USABLE
    np.testing.assert_array_equal(ask(client, {red: 0.0})[0], base)
    adapted = ask(client, {red: 1.0}, num_images=2)
    assert not np.array_equal(adapted[0], base)
    for number, picture in enumerate(adapted):
        np.testing.assert_array_equal(picture, direct({red: 1.0}, SETTINGS["seed"] + number))
    mix = {red: 0.4, blue: -0.7}
    np.testing.assert_array_equal(ask(client, mix)[0], direct(mix))


def test_sessions_do_not_mix(app: tuple[Studio, Library, str], direct: Callable[..., np.ndarray]) -> None:
    mixes: list[dict[str, float]] = [{USABLE[0]: 1.5}, {USABLE[1]: 1.5}]
    clients = [Client(app[2], verbose=False, analytics_enabled=False) for _ in mixes]
    wanted = [direct(mix) for mix in mixes]
    assert not np.array_equal(*wanted)
    with ThreadPoolExecutor(len(mixes)) as pool:
        jobs = [pool.submit(ask, *pair) for _ in range(3) for pair in zip(clients, mixes, strict=True)]
        for number, job in enumerate(jobs):
            np.testing.assert_array_equal(job.result()[0], wanted[number % len(mixes)])


def test_errors_are_the_librarys_and_name_no_folder(app: tuple[Studio, Library, str], root: Path) -> None:
    client = Client(app[2], verbose=False, analytics_enabled=False)
    for adapters, changes, words in (
        ({"broken": 1.0}, {}, "broken is refused"),
        ({"nobody": 1.0}, {}, "no adapter 'nobody' in the library"),
        ({USABLE[0]: "much"}, {}, "adapter 'dreambooth-red': weight must be float"),
        ({}, {"seed": -1}, "seed must be at least 0"),
    ):
        with pytest.raises(Exception, match=words) as caught:
            ask(client, adapters, **changes)
        assert str(root) not in str(caught.value)
    assert len(ask(client, {})) == 1
    assert {entry["name"] for entry in client.predict(api_name="/adapters")} == {"broken", *USABLE}


def test_stop_ends_at_the_next_step_and_frees_the_pipeline(app: tuple[Studio, Library, str]) -> None:
    studio, _, _ = app
    turn, mix = Turn(), {USABLE[0]: 1.0}
    check, other = turn.take(), copy.deepcopy(turn)
    seen: list[tuple[int, int]] = []

    def on_step(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 8:
            turn.end()
        other.end()
        check()

    made = studio.make(Request.from_page({**SETTINGS, "num_images": 2}), mix, compare=True, on_step=on_step)
    base, picture = next(made)
    assert base is not None
    assert not np.array_equal(pixels(base), pixels(picture))
    assert not studio.lock.locked()
    with pytest.raises(StoppedError):
        next(made)
    assert seen == [(i, 12) for i in range(1, 9)]
    assert not studio.lock.locked()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen"], "--auth USER:PASSWORD"),
        (["--listen", "--auth", "user:"], "must be USER:PASSWORD"),
        (["--adapters", "nowhere", "--base", "BASE"], "--adapters nowhere: no such file or folder"),
        (["--base", "/no/such/base"], "no such folder"),
    ],
)
def test_what_cannot_be_opened_is_one_line(
    arguments: list[str], words: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = os.environ["GRADIO_TEMP_DIR"]
    assert main([str(root / "base") if part == "BASE" else part for part in arguments]) == 2
    assert os.environ["GRADIO_TEMP_DIR"] == cache
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert words in line


def test_folders_are_hidden() -> None:
    assert hide_folders("/srv/a b/x.safetensors: bad") != "/srv/a b/x.safetensors: bad"
    assert hide_folders("could not read '/srv/models/x.safetensors': and/or 1/2") == (
        "could not read 'x.safetensors': and/or 1/2"
    )
