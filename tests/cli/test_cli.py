"""The command line: drawing, and one line for everything that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_adapters import load_adapter
from diffusion_adapters.cli import common
from diffusion_adapters.cli.common import parse_adapter
from tests.command_line import Run, assert_fails, pixels, trained
from tests.hosts import pipeline, pipeline_folder, sample

ROOT = Path(__file__).parents[2]


def test_generate_draws_with_the_embedded_base(cli: Run) -> None:
    code, out, _ = cli("generate", "--prompt", "a cat", "--steps", 1)
    assert code == 0
    assert out.strip() == "image.png"
    assert Image.open("image.png").size == (16, 16)


def test_adapters_and_their_weights_change_the_picture(cli: Run, adapters: dict[str, Path]) -> None:
    def draw(name: str, *adapters: str) -> torch.Tensor:
        flags = [word for adapter in adapters for word in ("--adapter", adapter)]
        code, _, err = cli("generate", "--prompt", "a cat", "--steps", 2, "--output", name, *flags)
        assert code == 0, err
        return pixels(name)

    one, two = adapters["lora"], adapters["other"]
    pictures = [
        draw("base.png"),
        draw("one.png", f"{one}"),
        draw("half.png", f"{one}:0.5"),
        draw("two.png", f"{two}"),
        draw("both.png", f"{one}:0.5", f"{two}:-1.5"),
    ]
    for i, first in enumerate(pictures):
        assert all(not torch.equal(first, second) for second in pictures[:i])
    assert torch.equal(draw("again.png", f"{one}:1"), pictures[1])
    assert torch.equal(draw("zero.png", f"{one}:0", f"{two}:0"), pictures[0])


def test_generate_is_what_the_library_draws(cli: Run, adapters: dict[str, Path]) -> None:
    """At the guidance that suits the embedded base, unless told otherwise."""
    cli("generate", "--prompt", "a red cat", "--steps", 2, "--seed", 0, "--adapter", f"{adapters['lora']}:0.7")
    pipe = pipeline()
    load_adapter(pipe, adapters["lora"], adapter_weight=0.7)
    (image,) = sample(pipe, output_type="pil", guidance_scale=common.POCKET_GUIDANCE)
    image.save("wanted.png")
    assert torch.equal(pixels("image.png"), pixels("wanted.png"))


def test_several_pictures_are_numbered_by_seed(cli: Run) -> None:
    code, out, _ = cli("generate", "--prompt", "a cat", "--steps", 1, "--num_images", 2, "--output", "new/cat.png")
    assert code == 0
    assert out.split() == [str(Path("new") / "cat_0.png"), str(Path("new") / "cat_1.png")]
    cli("generate", "--prompt", "a cat", "--steps", 1, "--seed", 1, "--output", "seed1.png")
    assert torch.equal(pixels("new/cat_1.png"), pixels("seed1.png"))
    assert not torch.equal(pixels("new/cat_0.png"), pixels("seed1.png"))


def test_a_base_can_be_given(cli: Run) -> None:
    cli("generate", "--prompt", "a cat", "--steps", 1, "--output", "embedded.png")
    code, _, _ = cli("generate", "--prompt", "a cat", "--steps", 1, "--base", pipeline_folder(seed=1))
    assert code == 0
    assert not torch.equal(pixels("image.png"), pixels("embedded.png"))


@pytest.mark.parametrize("name", ["image", "image.nosuch", "image.safetensors"])
def test_a_picture_that_cannot_be_written_is_noticed_first(cli: Run, name: str) -> None:
    assert_fails(cli("generate", "--prompt", "a cat", "--steps", 1, "--output", name), "--output", name, ".png")
    assert not any(Path().iterdir())


@pytest.mark.parametrize("flag", ["--num_images", "--steps"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_counts_must_be_positive(cli: Run, flag: str, value: str) -> None:
    assert_fails(cli("generate", "--prompt", "a cat", flag, value), flag.strip("-"), value)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("a.safetensors:1e-1", "a.safetensors", 0.1),
        ("C:\\a.safetensors", "C:\\a.safetensors", 1.0),
        ("C:\\a.safetensors:2", "C:\\a.safetensors", 2.0),
        ("dir:1/a.safetensors:2", "dir:1/a.safetensors", 2.0),
    ],
)
def test_file_and_weight_are_told_apart(text: str, path: str, weight: float) -> None:
    assert parse_adapter(text) == (Path(path), weight)


def test_an_existing_file_wins_over_a_weight(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors:2"
    path.write_bytes(b"")
    assert parse_adapter(str(path)) == (path, 1.0)
    assert parse_adapter(f"{path}:3") == (path, 3.0)


def test_commands_that_do_not_exist(cli: Run) -> None:
    assert_fails(cli("genrate"), "genrate", "generate")
    assert_fails(cli(), "COMMAND")
    assert_fails(cli("generate"), "--prompt")
    assert_fails(cli("generate", "--prompt", "a cat", "--step", "3"), "--step")


@pytest.mark.parametrize("command", ["generate", "inspect", "export"])
def test_wrong_files(cli: Run, tmp_path: Path, adapters: dict[str, Path], command: str) -> None:
    def call(path: object) -> tuple[int, str, str]:
        return cli("generate", "--prompt", "x", "--adapter", path) if command == "generate" else cli(command, path)

    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.bin")
    (tmp_path / "cut.safetensors").write_bytes(adapters["lora"].read_bytes()[:200])
    assert_fails(call("absent.safetensors"), "no adapter file at absent.safetensors")
    (tmp_path / "empty").mkdir()
    assert_fails(call(tmp_path / "empty"), "no .safetensors file in")
    assert_fails(call(tmp_path / "pickle.bin"), "pickle.bin", "a pickle can run code", ".safetensors")
    assert_fails(call(tmp_path / "cut.safetensors"), "cut.safetensors", "truncated")
    assert not any(Path().iterdir())


def test_wrong_weights(cli: Run, adapters: dict[str, Path]) -> None:
    for weight in ("half", "", "1,5"):
        result = cli("generate", "--prompt", "x", "--adapter", f"{adapters['lora']}:{weight}")
        assert_fails(result, f"the weight {weight!r} is not a number", "FILE:WEIGHT")
    for weight in ("nan", "inf"):
        assert_fails(cli("generate", "--prompt", "x", "--adapter", f"{adapters['lora']}:{weight}"), "finite", weight)
    assert not any(Path().iterdir())


def test_wrong_bases(cli: Run, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert_fails(
        cli("generate", "--prompt", "x", "--base", "no/such/folder"), "--base no/such/folder", "no such folder"
    )
    assert_fails(cli("generate", "--prompt", "x", "--base", tmp_path / "empty"), "empty")
    assert_fails(cli("export", adapters["lora"], "--base", "./nosuch"), "--base ./nosuch", "no such folder")
    foreign = trained(tmp_path / "foreign.safetensors", host="flux")
    for words in (("generate", "--prompt", "x", "--adapter", foreign), ("export", foreign)):
        assert_fails(cli(*words), "made for another base", "FluxTransformer2DModel", "UNet2DConditionModel")
    monkeypatch.setattr(common, "POCKET", tmp_path / "absent")
    assert_fails(cli("generate", "--prompt", "x"), "the embedded base lies in the clone", "--base")


def test_wrong_places_to_write(cli: Run, adapters: dict[str, Path], tmp_path: Path) -> None:
    assert_fails(cli("generate", "--prompt", "x", "--output", tmp_path), "--output", "is a folder")
    assert_fails(cli("export", adapters["lora"], "--output", tmp_path), "is a folder")
    assert_fails(cli("export", adapters["lora"], "--rank", 0), "--rank", "at least 1, got '0'")
    assert_fails(cli("export", adapters["lora"], "--dtype", "int8"), "--dtype", "int8")
    assert_fails(cli("export", adapters["lora"], "--energy", 2), "energy", "2.0")
    (tmp_path / "file").write_text("x")
    assert_fails(cli("generate", "--prompt", "x", "--steps", 1, "--output", tmp_path / "file" / "a.png"), "file")


def test_a_full_disk_says_so(cli: Run, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert_fails(cli("export", adapters["lora"], "--output", "a.safetensors"), "nothing was saved", "free some space")
    assert not any(Path().iterdir())


def test_as_a_process(adapters: dict[str, Path]) -> None:
    """The module runs as typed; importing what `inspect` needs is all it does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "diffusion_adapters", "inspect"]
    good = subprocess.run(
        [*command, str(adapters["lora"])], env=environment, capture_output=True, text=True, timeout=300
    )
    assert good.returncode == 0
    assert "a sks cat" in good.stdout
    bad = subprocess.run([*command, "absent"], env=environment, capture_output=True, text=True, timeout=300)
    assert bad.returncode == 2
    assert bad.stderr.strip().splitlines()[-1] == "error: no adapter file at absent"
    assert "Traceback" not in bad.stderr
