"""The library of the app: what it takes in and what it refuses, and that nothing in it is lost or overwritten."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

pytest.importorskip("gradio")

import httpx
from gradio_client import Client, handle_file

from diffusion_adapters.merge import MERGERS
from diffusion_adapters.safe import read_metadata as header_of
from tests.browser import GALLERY
from ui.app import build, open_page
from ui.bases import Base
from ui.home import Home, safe_name
from ui.library import Library
from ui.studio import Studio

Served = tuple[Studio, Client, str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    for name in ("red", "green"):
        shutil.copy(GALLERY / f"{name}.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "cat"
    for name, folder in (("red", run / "checkpoint-5"), ("green", run / "checkpoint-10"), ("red", run)):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(GALLERY / f"{name}.safetensors", folder / "adapter.safetensors")
    return run.parent


@pytest.fixture(scope="module")
def served(home: Path, elsewhere: Path) -> Iterator[Served]:
    studio = Studio([Base.of(None)], Library([elsewhere], home))
    page = build(studio)
    _, url, _ = open_page(page, prevent_thread_lock=True, max_file_size="2mb")
    yield studio, Client(url, verbose=False, analytics_enabled=False), url
    page.close()


@pytest.fixture
def ask(served: Served, home: Path) -> Callable[..., Any]:
    """Calls an endpoint; what is refused is the text that a user sees, which names no folder."""

    def call(name: str, *values: Any) -> Any:
        try:
            return served[1].predict(*values, api_name=f"/{name}")
        except Exception as error:
            text = str(error)
        assert str(home.parent) not in text
        raise ValueError(text)

    return call


def as_file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


SOUND = (GALLERY / "red.safetensors").read_bytes()
HOSTILE = {
    "pickle": (".safetensors", pickle.dumps({"a": 1}, 2), "a pickle can run code"),
    "archive": (".safetensors", b"PK\3\4" + bytes(100), "a pickle can run code"),
    "bomb": (".safetensors", (2**62).to_bytes(8, "little") + b'{"a":' + bytes(64), "not a safetensors file"),
    "truncated": (".safetensors", SOUND[: len(SOUND) // 2], "^evil.safetensors: damaged.*file not fully covered"),
    "no adapter": (".safetensors", save({"a.weight": torch.zeros(2)}), "no adapter"),
    "other ending": (".ckpt", SOUND, "adapters are .safetensors files"),
    "twice": (".safetensors", SOUND, "already, as 'red'"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_with_the_librarys_words(
    kind: str, ask: Callable[..., Any], home: Path, tmp_path: Path
) -> None:
    ending, data, words = HOSTILE[kind]
    (tmp_path / f"evil{ending}").write_bytes(data)
    before = files(home)
    with pytest.raises(ValueError, match=words):
        ask("upload", handle_file(tmp_path / f"evil{ending}"), "")
    assert files(home) == before


def test_a_file_that_is_too_large_is_refused_while_it_is_sent(served: Served) -> None:
    answer = httpx.post(f"{served[2]}gradio_api/upload", files={"files": ("big.safetensors", bytes(3 * 2**20))})
    assert answer.status_code == 413


def test_a_hostile_name_stays_a_name(served: Served, home: Path) -> None:
    data = SOUND.replace(b"sks", b"zwy")
    sent = {"files": ("../../../outside.safetensors", data)}
    value = as_file(*httpx.post(f"{served[2]}gradio_api/upload", files=sent).json())
    for name, kept in (("../../x.safetensors", "x"), ("..\\..\\a<b>:c\u202egnp.exe", "a_b_c_gnp_exe")):
        found = served[1].predict(value, name, api_name="/upload")
        assert found["name"] == kept
        assert (home / f"{kept}.safetensors").read_bytes() == data
        served[1].predict(kept, api_name="/delete")
    assert not list(home.parent.glob("*.safetensors"))
    for nameless in ("", "..", "///", "\0"):
        with pytest.raises(ValueError, match="is no name"):
            safe_name(nameless)
    assert len(safe_name("ä" * 500).encode()) <= 120


def test_a_servers_file_cannot_be_named(served: Served) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  # gradio's own
        served[1].predict(as_file("/etc/passwd"), "x", api_name="/upload")
    for path in ("/etc/passwd", str(GALLERY / "red.safetensors")):
        assert httpx.get(f"{served[2]}gradio_api/file={path}").status_code in (403, 404)


def test_names_notes_and_pictures_stay_with_their_file(ask: Callable[..., Any], home: Path, tmp_path: Path) -> None:
    (home / "red.json").write_text(json.dumps({"preferred weight": 0.7}))
    assert ask("annotate", "red", "bright", "a photo of zwx ball")["trigger"] == "a photo of zwx ball"
    Image.new("RGB", (900, 600), "orange").save(tmp_path / "picture.png")
    ask("thumbnail", "red", handle_file(tmp_path / "picture.png"))
    ask("rename", "red", "scarlet")
    assert files(home) >= {"scarlet.safetensors", "scarlet.json", "scarlet.preview.jpg"}
    notes = {"preferred weight": 0.7, "notes": "bright", "activation text": "a photo of zwx ball"}
    assert json.loads((home / "scarlet.json").read_text()) == notes
    assert Image.open(home / "scarlet.preview.jpg").size == (256, 171)
    (tmp_path / "no.png").write_bytes(b"\x89PNG" + bytes(50))
    with pytest.raises(ValueError, match=r"no\.png is no picture"):
        ask("thumbnail", "scarlet", handle_file(tmp_path / "no.png"))
    with pytest.raises(ValueError, match="has an adapter 'green'"):
        ask("rename", "scarlet", "green")
    label = ask("delete", "scarlet")
    assert not {"scarlet.safetensors", "scarlet.json", "scarlet.preview.jpg"} & files(home)
    assert ask("restore", label)["notes"] == notes
    assert ask("annotate", "scarlet", "", "")["trigger"] == "a photo of sks creature"
    ask("rename", "scarlet", "red")
    with pytest.raises(ValueError, match="nothing was deleted under"):
        ask("restore", "../../red")


def test_no_notes_leave_no_file(ask: Callable[..., Any], home: Path) -> None:
    for given in ((), (None, None), ("", "")):
        assert ask("annotate", "green", *given)["notes"] == {}
        assert not (home / "green.json").exists()
    assert ask("annotate", "green", "bright")["notes"] == {"notes": "bright"}
    assert ask("annotate", "green", "")["notes"] == {}
    (home / "green.json").unlink()


def test_files_of_runs_are_copied_and_never_changed(ask: Callable[..., Any], served: Served, elsewhere: Path) -> None:
    studio = served[0]
    studio.library.scan(studio.base())
    runs = studio.library.runs(studio.base())
    assert {name: list(steps) for name, steps in runs.items()} == {"cat": ["5", "10", "end"]}
    for action in (("delete", "cat"), ("rename", "cat", "dog"), ("annotate", "cat", "x", None)):
        with pytest.raises(ValueError, match="outside the library's own folder"):
            ask(*action)
    with pytest.raises(ValueError, match="already, as 'red'"):
        ask("copy", "cat", "")
    data = (elsewhere / "cat" / "adapter.safetensors").read_bytes()
    (elsewhere / "cat" / "adapter.safetensors").write_bytes(data.replace(b"sks", b"zwv"))
    assert ask("copy", "cat", "cat2")["own"]
    ask("delete", "cat2")
    assert set(files(elsewhere / "cat")) == {"checkpoint-5", "checkpoint-10", "adapter.safetensors"}


def test_the_doctor_tells_what_a_file_is(ask: Callable[..., Any]) -> None:
    found = ask("inspect", "green", "")
    told = (found["family"], found["coverage"], found["file"], found["training"]["steps"])
    assert told == ("wara", 1.0, "green.safetensors", 200)


@pytest.mark.parametrize("method", MERGERS)
def test_every_method_merges_into_the_library(method: str, ask: Callable[..., Any], home: Path) -> None:
    said = ask("merge", {"red": 0.5, "green": 1.0}, f"m {method}", method, {"rank": 2}, "")
    assert re.fullmatch(rf"m {method}: rank 2, relative error .*", said)
    made = json.loads(header_of(home / f"m {method}.safetensors")["diffusion-adapters"])["provenance"]
    assert (made["method"], made["options"]["rank"]) == (method, 2)
    (home / f"m {method}.safetensors").unlink()


def test_options_that_a_method_lacks_are_named(ask: Callable[..., Any], home: Path) -> None:
    before = files(home)
    for options, words in (({"density": 0.5}, "unknown option 'density'"), ({"rank": 0}, "rank must be at least 1")):
        with pytest.raises(ValueError, match=words):
            ask("merge", {"red": 1.0}, "new", "linear", options, "")
    with pytest.raises(ValueError, match="has an adapter 'green'"):
        ask("merge", {"red": 1.0}, "green", "linear", {}, "")
    assert files(home) == before


def test_export_and_bake_say_what_was_lost(ask: Callable[..., Any], home: Path) -> None:
    (file,), said = ask("export", {"red": 1.0}, "out", {"dialect": "kohya", "dtype": "fp16"}, "")
    assert Path(file).name == "out.safetensors"
    assert "exact but for the rounding of its numbers, relative error" in said
    assert b'"lora_unet_' in Path(file).read_bytes()
    assert str(home) not in ask("bake", {"red": 1.0}, "both", "")
    assert (home / "baked" / "both" / "model_index.json").is_file()
    with pytest.raises(ValueError, match=r"^both exists; give the name of a new folder"):
        ask("bake", {"red": 1.0}, "both", "")
    assert Path(ask("download", "green")).read_bytes() == (home / "green.safetensors").read_bytes()


def test_what_a_run_leaves_twice_is_listed_once(tmp_path: Path) -> None:
    for place in ("cat/adapter", "cat/pytorch_lora_weights", "bought/pytorch_lora_weights"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(GALLERY / "red.safetensors", tmp_path / f"{place}.safetensors")
    names = [entry.name for entry in Library([tmp_path]).scan(Base.of(None))]
    assert names == ["bought pytorch_lora_weights", "cat"]


def test_a_library_without_a_folder_of_its_own_only_reads(home: Path) -> None:
    with pytest.raises(ValueError, match="give --library"):
        Library([home]).home.take(home / "green.safetensors")
    with pytest.raises(ValueError, match="it is a file"):
        Home(home / "green.safetensors")
