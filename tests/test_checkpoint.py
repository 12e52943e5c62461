"""The folders of checkpoints: whole or absent, checked before use, and never all gone."""

from __future__ import annotations

import json
import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from train import checkpoint, state


def fill(text):
    def save(folder):
        (folder / "adapter.safetensors").write_text(text)
        state.write({"x": torch.arange(3)}, folder)

    return save


def write(folder, step, text="good", **more):
    return checkpoint.write(folder, step, fill(text), **{"settings": {"seed": 0}, "size": 10} | more)


def spoil(path, how):
    if how == "flipped bit":
        data = bytearray((path / state.TENSORS).read_bytes())
        data[-1] ^= 1
        (path / state.TENSORS).write_bytes(data)
    elif how == "truncated":
        (path / state.NUMBERS).write_text((path / state.NUMBERS).read_text()[:-3])
    elif how == "file gone":
        (path / "adapter.safetensors").unlink()
    elif how == "no manifest":
        (path / checkpoint.MANIFEST).unlink()
    elif how == "half a manifest":
        (path / checkpoint.MANIFEST).write_text((path / checkpoint.MANIFEST).read_text()[:50])
    elif how == "another's manifest":
        (path / checkpoint.MANIFEST).write_text('["a", "list"]')
    elif how == "a path in the manifest":
        manifest = json.loads((path / checkpoint.MANIFEST).read_text())
        manifest["files"]["../../secret"] = {"sha256": "0"}
        (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))


SPOILT = ("flipped bit", "truncated", "file gone", "no manifest", "half a manifest", "another's manifest")


@pytest.fixture(autouse=True)
def _log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("train"), "propagate", True)
    caplog.set_level(logging.INFO, "train")


def test_a_checkpoint_is_named_and_laid_out_as_tools_expect(tmp_path):
    path = write(tmp_path, 20)
    assert int(path.name.split("-")[1]) == 20
    assert {file.name for file in path.iterdir()} == {
        "adapter.safetensors", "state.safetensors", "state.json", "manifest.json"
    }  # fmt: skip
    manifest = checkpoint.verify(path)
    assert manifest["step"] == 20
    assert set(manifest["files"]) == {"adapter.safetensors", "state.safetensors", "state.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-20"]


@pytest.mark.parametrize("how", [*SPOILT, "a path in the manifest"])
def test_latest_passes_over_a_broken_one_and_says_so(tmp_path, how, caplog):
    write(tmp_path, 9)
    spoil(write(tmp_path, 10), how)
    assert checkpoint.find(tmp_path, "latest") == tmp_path / "checkpoint-9"
    assert f"Not resumed from {tmp_path / 'checkpoint-10'}: " in caplog.text
    with pytest.raises(ValueError, match="checkpoint-10: "):
        checkpoint.find(tmp_path, "checkpoint-10")
    spoil(tmp_path / "checkpoint-9", "no manifest")
    assert checkpoint.find(tmp_path, "latest") is None
    assert "training starts from the beginning" in caplog.text


def test_a_given_checkpoint_is_found_by_path_or_name(tmp_path):
    path = write(tmp_path, 5)
    assert checkpoint.find(tmp_path, str(path)) == path
    assert checkpoint.find(tmp_path, "checkpoint-5") == path
    with pytest.raises(FileNotFoundError, match="--resume_from_checkpoint checkpoint-6: no such folder"):
        checkpoint.find(tmp_path, "checkpoint-6")


def test_a_run_does_not_begin_among_the_checkpoints_of_another(tmp_path):
    assert checkpoint.find(tmp_path, None) is None
    write(tmp_path, 5)
    with pytest.raises(ValueError, match="holds checkpoint-5 of an earlier run; go on with that run by --resume_from"):
        checkpoint.find(tmp_path, None)


def test_rotation_keeps_the_newest(tmp_path):
    for step in (2, 4, 6, 8, 100):
        write(tmp_path, step, limit=2)
        assert len(checkpoint.steps(tmp_path)) <= 2
    assert list(checkpoint.steps(tmp_path)) == [8, 100]


def test_rotation_leaves_the_last_good_one_if_the_new_one_is_not(tmp_path, monkeypatch, caplog):
    write(tmp_path, 2, limit=1)
    real = checkpoint._sync

    def lose_a_byte(path):
        real(path)
        if path.name == state.NUMBERS:  # after it was hashed: the disk lies
            path.write_text(path.read_text()[:-1])

    monkeypatch.setattr(checkpoint, "_sync", lose_a_byte)
    assert write(tmp_path, 4, limit=1) is None
    assert "Not written" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    checkpoint.verify(tmp_path / "checkpoint-2")


def test_a_full_disk_costs_one_checkpoint_and_no_training(tmp_path, monkeypatch, caplog):
    write(tmp_path, 2, limit=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(2**30, 2**30, 2**20))
    assert write(tmp_path, 4, limit=1, size=3 * 2**20) is None
    assert "checkpoint-4 (4 MiB needed, 1 MiB free); training goes on, older ones stay" in caplog.text
    monkeypatch.undo()

    def full(folder):
        fill("some")(folder)
        raise OSError(28, "No space left on device")

    assert checkpoint.write(tmp_path, 4, full, settings={}, size=1, limit=1) is None
    assert "No space left on device" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


class Killed(BaseException):
    """Ends the program, as far as code can tell."""


DISK = ((checkpoint, "_sync"), (checkpoint, "_sha256"), (Path, "rename"), (shutil, "rmtree"), (Path, "unlink"))


def die_after(calls, patch):
    """Every call to the disk after so many raises Killed."""
    left = iter(range(calls))

    def dying(real):
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise Killed
            return real(*args, **kwargs)

        return call

    for owner, name in DISK:
        patch.setattr(owner, name, dying(getattr(owner, name)))


@pytest.mark.parametrize("replaces", [False, True])
def test_whenever_it_is_killed_there_is_a_good_one(tmp_path, monkeypatch, replaces):
    """Ends the program at each call to the disk in turn; what is left is found and whole, and tidied up."""
    instant, finished = 0, False
    while not finished:
        folder = tmp_path / f"{instant}-{replaces}"
        folder.mkdir()
        write(folder, 2, "older", limit=1)
        if replaces:
            write(folder, 4, "of another branch")
        with monkeypatch.context() as patch:
            die_after(instant, patch)
            try:
                write(folder, 4, "newer", limit=1)
                finished = True
            except Killed:
                instant += 1
        checkpoint.recover(folder)
        found = checkpoint.find(folder, "latest")
        assert found is not None
        assert (found / "adapter.safetensors").read_text() in ("older", "newer", "of another branch"[: 99 * replaces])
        assert not list(folder.glob(".*"))
    assert instant > 12
    assert (folder / "checkpoint-4" / "adapter.safetensors").read_text() == "newer"
    assert list(checkpoint.steps(folder)) == [4]


def test_settings_that_differ_are_named_with_both_values(tmp_path):
    path = write(tmp_path, 2, settings={"seed": 0, "rank": 4, "betas": (0.9, 0.99)})
    checkpoint.check_settings(path, {"seed": 0, "rank": 4, "betas": (0.9, 0.99), "new": 1})
    with pytest.raises(ValueError, match=r"its rank was 4, now it is 8; a run goes on with the settings"):
        checkpoint.check_settings(path, {"rank": 8})
    with pytest.raises(ValueError, match=r"its seed was 0, now it is 1 \(and rank\)"):
        checkpoint.check_settings(path, {"seed": 1, "rank": 5})


def test_state_comes_back_bit_by_bit(tmp_path):
    tree = {
        "tensors": {0: torch.tensor([1e-45, float("nan"), -0.0]), 7: torch.tensor(3, dtype=torch.int32)},
        "half": [torch.randn(3).bfloat16(), torch.randn(2, 3).t()],
        "numbers": (0.1, 1e-320, float("inf"), 10**30, True, None, "text", {}),
        "empty": torch.empty(0, 3),
    }
    state.write(tree, tmp_path)
    found = state.read(tmp_path)
    assert found["numbers"] == tree["numbers"]
    assert list(found["tensors"]) == [0, 7]
    assert found["tensors"][7].dtype == torch.int32
    assert found["tensors"][0].view(torch.int32).equal(tree["tensors"][0].view(torch.int32))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found["half"], tree["half"], strict=True))
    assert state.size(tree) == 12 + 4 + 6 + 24
    with pytest.raises(TypeError, match="optimizer/state/projector is a object, which a checkpoint cannot hold"):
        state.write({"optimizer": {"state": {"projector": object()}}}, tmp_path)


def test_nothing_is_unpickled(tmp_path):
    state.write({"x": torch.ones(2)}, tmp_path)
    torch.save({"x": torch.ones(2)}, tmp_path / state.TENSORS)
    with pytest.raises(ValueError, match="damaged state: SafetensorError"):
        state.read(tmp_path)


def test_dtypes_of_an_optimizer_survive_loading():
    """Torch casts what it loads to the dtype of the parameters: indices 257 to 256, fp32 moments to bf16."""
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    saved = optimizer.state_dict()
    saved["state"] = {0: {"momentum_buffer": torch.tensor([0.1, 0.2]), "columns": torch.tensor([257, 999]), "step": 3}}
    state.restore_optimizer(optimizer, saved)
    own = optimizer.state[parameter]
    assert own["columns"].tolist() == [257, 999]
    assert own["momentum_buffer"].dtype == torch.float32
    assert own["momentum_buffer"].tolist() == torch.tensor([0.1, 0.2]).tolist()
