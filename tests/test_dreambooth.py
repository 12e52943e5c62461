"""The main job: what it leaves behind, what it prints, and every way in which it can be given something wrong."""

from __future__ import annotations

import base64
import dataclasses
import errno
import io
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_adapters import FAMILIES, load_adapter
from diffusion_adapters.file import read_adapter, read_safetensors
from tests.tiny import save_pipeline
from train import dreambooth, engine, output, results
from train.bases import inspect_base
from train.flags import parse

WRITTEN = {
    "adapter.safetensors",
    "pytorch_lora_weights.safetensors",
    "config.toml",
    "loss.png",
    "records.jsonl",
    "grid.png",
    "README.md",
    *(f"image_{i}.png" for i in range(4)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with a folder `cat` of two pictures."""
    monkeypatch.chdir(tmp_path)
    Path("cat").mkdir()
    for i in range(2):
        Image.linear_gradient("L").rotate(90 * i).save(f"cat/{i}.png")
    return tmp_path


def arguments(base, *more):
    fast = ("--max_train_steps", "2", "--num_inference_steps", "2", "--num_validation_images", "1")
    subject = ("--instance_data_dir", "cat", "--instance_prompt", "a photo of sks cat")
    return [*("--pretrained_model_name_or_path", str(base)), *subject, *fast, *more]


def test_it_leaves_everything_and_says_what_to_do_next(base, place, capsys):
    assert dreambooth.main(arguments(base, "--adapter", "lora", "--rank", "2")) == 0
    said = capsys.readouterr()
    assert said.err == ""
    folder = place / "dreambooth-lora"
    assert {path.name for path in folder.iterdir()} == WRITTEN
    for name in ("adapter.safetensors", "pytorch_lora_weights.safetensors"):
        label = read_safetensors(folder / name)[1]["modelspec.thumbnail"].removeprefix("data:image/jpeg;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(label))).size == (16, 16)
    for line in (
        "***** Running training *****",
        "  Num examples = 2",
        "  Total optimization steps = 2",
        "step 2/2  loss ",
    ):
        assert line in said.out
    file = read_adapter(folder / "adapter.safetensors")
    assert (file.info.family, file.info.config.rank, file.info.trigger) == ("lora", 2, "a photo of sks cat")
    assert {"steps", "learning_rate", "seed", "resolution"} <= set(file.info.training)
    for name in ("grid.png", "loss.png", "image_0.png"):
        with Image.open(folder / name) as image:
            image.load()

    card = (folder / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    for line in ("library_name: diffusers", 'instance_prompt: "a photo of sks cat"', "- lora-diffusers", "<Gallery />"):
        assert line in card
    assert all((folder / name).exists() for name in re.findall(r"(?:url: |\]\()(\S+\.png)", card))
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    scope: dict = {}
    exec(code, scope)  # the card's code is true: it runs where the training was started
    assert scope["image"].size == (16, 16)
    printed = said.out.split("Use it in Python:\n")[1].split("From the shell:")[0]
    assert [line.strip() for line in printed.splitlines() if line.strip()] == [
        line for line in code.splitlines() if line
    ]
    assert "python -m diffusion_adapters generate --adapter dreambooth-lora/adapter.safetensors" in said.out
    assert "python -m ui" in said.out

    capsys.readouterr()
    again = ["--config", "dreambooth-lora/config.toml", "--output_dir", "again"]
    assert dreambooth.main(again) == 0
    other = read_adapter(place / "again" / "adapter.safetensors")
    for path, tensors in file.tensors["unet"].items():
        assert all(torch.equal(value, other.tensors["unet"][path][name]) for name, value in tensors.items())


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"hybrid"}))  # that one: test_hybrid_domain.py
def test_every_family_trains_and_loads(base, place, family):
    ranks = [field.name for field in dataclasses.fields(FAMILIES[family].Config) if field.name.endswith("rank")]
    small = [text for name in ranks for text in (f"--{name}", "2")]  # some start with more than the tiny base is wide
    config, adapter = parse(dreambooth.DreamBoothOptions, None, arguments(base, "--adapter", family, *small))
    generator = dreambooth.run(config, adapter)
    records = []
    try:
        while True:
            records.append(next(generator))
    except StopIteration as end:
        finished = end.value
    assert [record["step"] for record in records] == [1, 2]
    assert finished.trained > 0
    fresh = inspect_base(config).denoiser().to_empty(device="cpu")
    fresh.load_state_dict(finished.base.denoiser.state_dict())
    load_adapter(fresh, place / f"dreambooth-{family}" / "adapter.safetensors")
    inputs = (torch.randn(1, 4, 8, 8), 10, torch.randn(1, 32, 16))
    with torch.no_grad():
        torch.testing.assert_close(fresh(*inputs)[0], finished.base.denoiser(*inputs)[0])


def one_line(capsys, *argv):
    """What `main` says on stderr, having refused."""
    assert dreambooth.main(list(argv)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said.removeprefix("error: ").rstrip("\n")


def test_each_mistake_is_one_line_before_anything_is_loaded(base, place, capsys, monkeypatch):
    monkeypatch.setattr(dreambooth, "load_base", lambda *_: pytest.fail("the base was loaded"))
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/broken.jpg").write_bytes(Path("cat/0.png").read_bytes()[:40])
    Path("file").write_text("")

    def refused(*more):
        before = sorted(place.rglob("*"))
        said = one_line(capsys, *arguments(base, "--adapter", "lora", *more))
        assert sorted(place.rglob("*")) == before
        return said

    assert refused("--instance_data_dir", "absent") == "--instance_data_dir absent: no such folder"
    assert refused("--instance_data_dir", "empty").startswith("--instance_data_dir empty: the folder has no files")
    assert refused("--instance_data_dir", "bad").startswith(
        "--instance_data_dir bad: no picture can be read (broken.jpg: "
    )
    assert "attn1.to_q, weight (8, 8): rank 512 exceeds min(out, in) = 8" in refused("--rank", "512")
    assert refused("--adapter", "lorra").startswith("unknown adapter family 'lorra', did you mean 'lora'?")
    assert refused("--target_modules", "to_kk").startswith(
        "unknown target 'to_kk' in target_modules, did you mean 'to_k'?"
    )
    assert (
        refused("--output_dir", "file")
        == "--output_dir file: it is a file, or lies below one; give the name of a folder"
    )
    assert refused("--output_dir", "file/below").startswith("--output_dir file/below: it is a file, or lies below one")
    assert (
        refused("--learning_rte", "1")
        == "unknown flag --learning_rte, did you mean '--learning_rate'? --help lists all"
    )
    assert refused("--resolution", "17") == "--resolution 17 must be a multiple of 2 for this base, such as 16"
    absent = refused("--pretrained_model_name_or_path", "cat/absent/base")
    assert absent.startswith("--pretrained_model_name_or_path cat/absent/base: no such folder")


def test_an_output_folder_that_cannot_be_written_is_refused(place, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(output.tempfile, "TemporaryFile", denied)
    with pytest.raises(
        OSError, match=r"--output_dir out: cannot be written \(Permission denied\); choose another folder"
    ):
        output.prepare(Path("out"), 0)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"--output_dir \S+: \d+ MiB needed, \d+ MiB free; free some space"):
        output.prepare(place / "out", 2**60)


def test_a_full_disk_leaves_no_half_written_file(base, place, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("diffusion_adapters.safe.os.fsync", full)
    said = one_line(capsys, *arguments(base, "--adapter", "lora", "--output_dir", "out"))
    assert "could not write out/adapter.safetensors: No space left on device" in said
    assert said.endswith("free some space and try again")
    assert [path.name for path in (place / "out").iterdir() if "records" not in path.name] == ["config.toml"]
    monkeypatch.undo()
    monkeypatch.chdir(place)

    real = results.report.loss_plot
    monkeypatch.setattr(results.report, "loss_plot", lambda records, path: (real(records, path), full()))
    said = one_line(capsys, *arguments(base, "--adapter", "lora", "--output_dir", "out"))
    assert "could not write out/loss.png: No space left on device" in said
    assert {path.name for path in (place / "out").iterdir()} == {
        "adapter.safetensors",
        "pytorch_lora_weights.safetensors",
        "config.toml",
        "records.jsonl",
    }


def test_one_good_picture_among_bad_ones_is_enough(base, place, capsys):
    Path("cat/0.png").write_bytes(b"not a picture")
    assert dreambooth.main(arguments(base, "--adapter", "lora", "--num_validation_images", "0")) == 0
    said = capsys.readouterr().out
    assert "1 picture at 16 x 16 pixels\n  not used 0.png: not an image that Pillow can read" in said
    assert {path.name for path in Path("dreambooth-lora").iterdir()} == {n for n in WRITTEN if "image" not in n}


def test_an_interrupt_finishes_the_step_and_saves(base, place, capsys, monkeypatch):
    def interrupting(self, *args, **kwargs):
        for record in train(self, *args, **kwargs):
            if record["step"] == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield record

    train = engine.Trainer.train
    monkeypatch.setattr(engine.Trainer, "train", interrupting)
    handler = signal.getsignal(signal.SIGINT)
    assert dreambooth.main(arguments(base, "--adapter", "lora", "--max_train_steps", "100")) == 0
    assert "what is trained so far will be saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    assert read_adapter(place / "dreambooth-lora" / "adapter.safetensors").info.training["steps"] == 3


def test_a_bug_keeps_its_traceback(base, place, monkeypatch):
    monkeypatch.setattr(dreambooth, "settle", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        dreambooth.main(arguments(base, "--adapter", "lora"))
