"""Writing an adapter file: the old one or the new one, whole, and readable by others."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffusion_adapters import add_adapter, load_adapter, save_adapter
from diffusion_adapters.safe import read_safetensors, write_safetensors
from tests.files import saved
from tests.hosts import pipeline, sample, stir


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "fdopen", "replace"])
def test_a_full_disk_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, call: str, model: nn.Module
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    load_adapter(model, file, "one")
    before = file.read_bytes()
    monkeypatch.setattr(*{"replace": (Path, "replace")}.get(call, (os, call)), full)
    with pytest.raises(OSError, match=r"could not write .*lora\.safetensors: .*; nothing was saved") as caught:
        save_adapter(model, "one", file)
    assert caught.value.errno == errno.ENOSPC
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_an_interrupt_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    load_adapter(model, file, "one")
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(model, "one", file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_no_place_to_write(model: nn.Module, tmp_path: Path) -> None:
    add_adapter(model, "one", rank=1)
    with pytest.raises(ValueError, match=r"is a folder; give the name of a \.safetensors file"):
        save_adapter(model, "one", tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    add_adapter(model, "one", rank=1)
    with pytest.raises(OSError, match=r"could not write .*file.one\.safetensors"):
        save_adapter(model, "one", tmp_path / "file" / "one.safetensors")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ""])
def test_a_name_that_will_not_load_again_is_refused(model: nn.Module, tmp_path: Path, suffix: str) -> None:
    """Our own file under a pickle's name loads nowhere else; it is refused before the training's end is lost."""
    add_adapter(model, "one", rank=1)
    path = tmp_path / f"one{suffix}"
    try:
        save_adapter(model, "one", path)
    except ValueError as error:
        assert ".safetensors" in str(error)  # noqa: PT017
        assert not any(tmp_path.iterdir())
    else:
        load_adapter(model, path, "again")


def test_unknown_names_are_not_saved(model: nn.Module, tmp_path: Path) -> None:
    add_adapter(model, "one", rank=1)
    with pytest.raises(ValueError, match=r"unknown adapter 'oen', did you mean 'one'"):
        save_adapter(model, "oen", tmp_path / "one.safetensors")
    assert not any(tmp_path.iterdir())


def test_files_are_readable_as_any_other(tmp_path: Path) -> None:
    """The temporary file is private; the file is what the umask says."""
    mask = os.umask(0o027)
    try:
        path = write_safetensors({"a": torch.zeros(2)}, {}, tmp_path / "a.safetensors")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    square = torch.arange(12.0).view(3, 4)
    path = write_safetensors({"a": square.t(), "b": square[:, 1:3], "c": square[0]}, {}, tmp_path / "a.safetensors")
    tensors, _ = read_safetensors(path)
    assert torch.equal(tensors["a"], square.t())
    assert torch.equal(tensors["b"], square[:, 1:3])
    assert torch.equal(tensors["c"], square[0])


def test_a_pipeline_and_its_denoiser_read_each_others_files(tmp_path: Path) -> None:
    pipe = pipeline()
    stir(add_adapter(pipe.unet, "one", rank=1).parameters())
    wanted = sample(pipe)
    path = save_adapter(pipe.unet, "one", tmp_path / "one.safetensors")
    fresh = pipeline()
    load_adapter(fresh, path)
    assert torch.equal(sample(fresh), wanted)
    back = save_adapter(fresh, "one", tmp_path / "two.safetensors")
    again = pipeline()
    load_adapter(again.unet, back)
    assert torch.equal(sample(again), wanted)
