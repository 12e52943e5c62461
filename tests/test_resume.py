"""Checkpoints: a run that was stopped and goes on is the run that was not, bitwise; nothing of a broken one is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from diffusion_adapters import FAMILIES, save_adapter
from diffusion_adapters.options import option
from tests.test_engine import dataset, fresh
from tests.tiny import save_pipeline
from train import checkpoint
from train.checkpoint import CheckpointOptions
from train.engine import Trainer
from train.flags import AdapterOptions
from train.keeper import Keeper
from train.optimizers import OPTIMIZERS
from train.settings import TrainOptions, make_accelerator

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
    keeper = Keeper(accelerator, config, adapter, [AdapterOptions, TrainOptions])
    base = fresh(folder)
    data = dataset(base)
    trainer = Trainer(accelerator, config, base, keeper.adapters(base, data, "pet"), data)
    return trainer, keeper


def go(folder, output, *args, stop=lambda: False, between=lambda trainer: None, **options):
    """Run to the end or to `stop`; what was trained, what would be saved, and the records."""
    trainer, keeper = prepare(folder, output, *args, **options)
    keep = keeper.follow(trainer, lambda path: save_adapter(trainer.base.pipeline, "pet", path))
    for _ in trainer.train(stop, keep):
        between(trainer)
    values = {name: value.clone() for name, value in trainer.adapters.state_dict().items()}
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
