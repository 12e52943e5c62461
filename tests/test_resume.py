"""Checkpoints: a run that was stopped and goes on is the run that was not, bitwise; nothing of a broken one is used."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from diffusion_adapters import FAMILIES, load_adapter, save_adapter, set_adapters
from diffusion_adapters.file import read_adapter
from diffusion_adapters.options import option
from tests.test_engine import dataset, fresh
from tests.tiny import save_pipeline
from train import checkpoint
from train.bases import sample
from train.checkpoint import CheckpointOptions
from train.engine import Trainer
from train.flags import AdapterOptions
from train.keeper import Keeper
from train.optimizers import OPTIMIZERS
from train.processes import make_accelerator
from train.settings import TrainOptions
from train.tasks import Subject, attach

TINY = {
    "loldu": {"rank": 4, "alpha": 4.0},
    "transformed_lora": {"transform_rank": 2, "rank": 2, "identity_penalty": 0.1},
    "wara": {"rank": 2, "level": 2},
}


@dataclass(frozen=True, kw_only=True)
class Settings(AdapterOptions, TrainOptions, CheckpointOptions):
    output_dir: Path = option(Path("out"), "where checkpoints go")  # noqa: RUF009


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("tiny") / "tiny")


def prepare(folder, output, family="lora", **options):
    """A trainer on a base that was just loaded, and what keeps it, as the script makes them."""
    small = {"checkpointing_steps": 2, "max_train_steps": 4, "learning_rate": 1e-2}
    config = Settings(output_dir=output, adapter=family, **small | options)
    adapter = FAMILIES[family].Config(**TINY.get(family, {}))
    output.mkdir(exist_ok=True)
    accelerator = make_accelerator(config)
    attached = functools.partial(attach, Subject(), config, adapter)
    keeper = Keeper(accelerator, config, adapter, [AdapterOptions, TrainOptions], attached)
    base = fresh(folder)
    data = dataset(base, live_texts=config.live_texts)
    trainer = Trainer(accelerator, config, base, keeper.adapters(base, data, "pet"), data)
    return trainer, keeper


def go(folder, output, *args, stop=lambda: False, between=lambda trainer: None, **options):
    """Run to the end or to `stop`; what was trained, what would be saved, and the records."""
    trainer, keeper = prepare(folder, output, *args, **options)
    keep = keeper.follow(trainer, lambda path: save_adapter(trainer.base.pipeline, "pet", path))
    for _ in trainer.train(stop, keep):
        between(trainer)
    values = {name: value.clone() for name, value in trainer.adapters.state_dict().items()}
    values |= {f"parameter {i}": value.detach().clone() for i, value in enumerate(trainer.parameters)}
    with trainer.inference():
        shown = {f"shown {name}": value.clone() for name, value in trainer.adapters.state_dict().items()}
    return values | shown, trainer.history


def same(one, other):
    assert one[1] == other[1]
    assert list(one[0]) == list(other[0])
    assert [name for name in one[0] if not torch.equal(one[0][name], other[0][name])] == []


def check_exact(folder, tmp_path, *args, **options):
    whole = go(folder, tmp_path / "whole", *args, **options)
    go(folder, tmp_path / "parts", *args, **options | {"stop": iter([False, True]).__next__})
    assert list(checkpoint.steps(tmp_path / "parts")) == [2]
    same(whole, go(folder, tmp_path / "parts", *args, **options | {"resume_from_checkpoint": "latest"}))
    return whole


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_on_exactly(folder, tmp_path, family):
    options = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "use_ema": True, "lr_scheduler": "cosine"}
    values, history = check_exact(folder, tmp_path, family, **options)
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    shown = [name for name in values if not name.startswith("shown") and values[name].dtype.is_floating_point]
    assert any(not torch.equal(values[name], values[f"shown {name}"]) for name in shown)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "torch.optim.SGD"])
def test_every_optimizer_goes_on_exactly(folder, tmp_path, optimizer):
    path = OPTIMIZERS[optimizer].package if optimizer in OPTIMIZERS else "torch"
    pytest.importorskip(path)
    options = {"lr_warmup_steps": 3, "optimizer": optimizer}
    if "SGD" in optimizer:
        options["optimizer_args"] = ("momentum=0.9",)
    if optimizer == "adamw_8bit":
        options["optimizer_args"] = ("min_8bit_size=16",)
    check_exact(folder, tmp_path, **options)


def test_text_encoders_go_on_exactly(folder, tmp_path):
    options = {"train_text_encoder": True, "text_encoder_lr": 2e-2, "text_encoder_rank": 2}
    options |= {"use_ema": True, "gradient_accumulation_steps": 2}
    values, _ = check_exact(folder, tmp_path, **options)
    plain, _ = go(folder, tmp_path / "plain", gradient_accumulation_steps=2)
    assert len(values) > len(plain)
    (file,) = (tmp_path / "whole" / "checkpoint-4").glob("adapter.safetensors")
    part = read_adapter(file).text["text_encoder"]
    assert all(value.abs().sum() > 0 for value in part.tensors.values())  # B too: it was trained


@pytest.mark.parametrize("how", [{"use_ema": True}, {"optimizer": "schedule_free"}, {}])
def test_looking_between_steps_changes_nothing(folder, tmp_path, how):
    """Sampling with the live modules, at other weights, from other seeds: the run is bitwise the run without."""
    pytest.importorskip("schedulefree")
    seen = []

    def look(trainer):
        with trainer.inference():
            torch.randn(3)
            seen.append({name: value.clone() for name, value in trainer.adapters.state_dict().items()})
            for weight in (1.0, 0.5, 0.0):
                set_adapters(trainer.base.denoiser, ["pet"], weight)
                sample(trainer.base, ["a photo of sks cat"], [3], steps=2, guidance_scale=2.0, side=16)
        assert trainer.adapters.training
        assert trainer.adapters.weights == {"pet": 1.0}

    plain = go(folder, tmp_path / "plain", **how)
    same(plain, go(folder, tmp_path / "looked", between=look, **how))
    assert all(torch.equal(value, plain[0][f"shown {name}"]) for name, value in seen[-1].items())
    differ = [name for name in seen[-1] if not torch.equal(plain[0][name], seen[-1][name])]
    assert bool(differ) == bool(how)


def test_what_a_checkpoint_holds_is_what_would_be_saved(folder, tmp_path):
    """Its adapter file is one like any other, with the averaged values."""
    values, _ = go(folder, tmp_path / "out", use_ema=True)
    file = read_adapter(tmp_path / "out" / "checkpoint-4" / "adapter.safetensors")
    (tensors,) = file.tensors.values()
    shown = {name: value for name, value in values.items() if name.startswith("shown")}
    assert sum(len(part) for part in tensors.values()) == len(shown)
    for path, part in tensors.items():
        for name, value in part.items():
            assert torch.equal(value, shown[f"shown adapters.:pet.{path.replace('.', '/')}.{name}"])
    base = fresh(folder)
    assert load_adapter(base.pipeline, file.path, "again") == "again"


def test_a_run_goes_on_with_the_settings_that_it_began_with(folder, tmp_path):
    go(folder, tmp_path / "out")
    resume = {"resume_from_checkpoint": "latest"}
    for name, value, before in (
        ("train_batch_size", 2, "1"),
        ("learning_rate", 0.5, "0.01"),
        ("seed", 3, "0"),
        ("optimizer", "adafactor", "'adamw'"),
        ("use_ema", True, "False"),
        ("family", "wara", "'lora'"),
    ):
        said = {"family": "adapter"}.get(name, name)
        with pytest.raises(ValueError, match=rf"checkpoint-4: its {said} was {before}, now it is '?{value}"):
            prepare(folder, tmp_path / "out", **resume | {name: value})
    trainer, keeper = prepare(folder, tmp_path / "out", **resume)
    trainer.dataset.examples.pop()
    with pytest.raises(ValueError, match="its pictures was"):
        keeper.adapters(trainer.base, trainer.dataset, "other")
    other = save_pipeline(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="its base was"):
        prepare(other, tmp_path / "out", **resume)
    values, history = go(folder, tmp_path / "out", max_train_steps=6, checkpointing_steps=1, **resume)
    same((values, history), go(folder, tmp_path / "whole", max_train_steps=6))


def test_a_schedule_takes_the_new_number_of_steps(folder, tmp_path):
    go(folder, tmp_path / "out", lr_scheduler="linear", max_train_steps=4)
    more = {"resume_from_checkpoint": "latest", "max_train_steps": 8}
    _, history = go(folder, tmp_path / "out", lr_scheduler="linear", **more)
    rates = [record["lr"] for record in history]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025, 0.005, 0.00375, 0.0025, 0.00125])
