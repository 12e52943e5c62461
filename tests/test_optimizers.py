"""Optimizers by name and by path: what they are given, what they need, and what they refuse."""

from __future__ import annotations

import sys

import pytest
import torch

from diffusion_adapters import FAMILIES
from train.optimizers import OPTIMIZERS, OptimizerOptions, find_kind, make_optimizer
from train.settings import TrainOptions
from train.settings import make_optimizer as with_schedule


def groups(rate=1e-3):
    return [{"params": [torch.nn.Parameter(torch.ones(4, 4))], "lr": rate}]


def make(name, *arguments, **options):
    return make_optimizer(OptimizerOptions(optimizer=name, optimizer_args=arguments or None, **options), groups(), 1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_learns_with_the_settings_of_the_flags(name):
    pytest.importorskip(OPTIMIZERS[name].package)
    optimizer = make(name, adam_weight_decay=0.125, adam_beta1=0.875)
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.125
    assert "betas" not in group or group["betas"][0] == 0.875
    assert group["lr"] == 1e-3
    group["lr"] = OPTIMIZERS[name].learning_rate or 1e-3
    (parameter,) = group["params"]
    assert OPTIMIZERS[name].averages == hasattr(optimizer, "eval")
    if OPTIMIZERS[name].averages:
        optimizer.train()
    for _ in range(10):
        parameter.grad = torch.ones(4, 4)
        optimizer.step()
    assert (parameter < 1).all()


def test_any_optimizer_by_its_path():
    optimizer = make("torch.optim.SGD", "momentum=0.9", "nesterov=True")
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["nesterov"]) == (0.9, True)
    assert make("adamw", "amsgrad=True").param_groups[0]["amsgrad"] is True
    assert make("AdamW").param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("adamm", (), "--optimizer adamm: unknown, did you mean 'adamw'? available: adafactor, adamw, "),
        ("torch.optim.Adamm", (), "--optimizer torch.optim.Adamm: torch.optim has no Adamm"),
        ("lion_nowhere.Lion", (), "needs the package lion_nowhere (No module named 'lion_nowhere'): pip install"),
        ("adamw", ("momentum=1",), "--optimizer_args momentum: torch.optim.AdamW has no such setting, "),
        ("adamw", ("amsgrad",), "--optimizer_args 'amsgrad': write NAME=VALUE"),
        ("torch.optim.SGD", ("momentum=-1",), "--optimizer torch.optim.SGD: Invalid momentum value: -1"),
        ("torch.nn.Linear", ("in_features=2",), "--optimizer torch.nn.Linear: "),
    ],
)
def test_a_mistake_is_one_line(name, arguments, said):
    with pytest.raises(ValueError, match=r".") as error:
        make(name, *arguments)
    assert str(error.value).startswith(said) or said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].package != "torch"])
def test_a_missing_package_is_named(name, monkeypatch):
    package = OPTIMIZERS[name].package
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    said = rf"--optimizer {name} needs the package {package} \(.*\): pip install {package}"
    with pytest.raises(ValueError, match=said):
        find_kind(OptimizerOptions(optimizer=name))


def test_the_alias_of_diffusers():
    pytest.importorskip("bitsandbytes")
    assert find_kind(OptimizerOptions(use_8bit_adam=True)) is OPTIMIZERS["adamw_8bit"]
    with pytest.raises(ValueError, match="--use_8bit_adam is --optimizer adamw_8bit; leave it out, or --optimizer pro"):
        find_kind(OptimizerOptions(use_8bit_adam=True, optimizer="prodigy"))


def test_a_schedule_free_optimizer_takes_the_warm_up_and_no_schedule():
    pytest.importorskip("schedulefree")
    options = TrainOptions(optimizer="schedule_free", lr_warmup_steps=7)
    optimizer, schedule = with_schedule(options, groups(), 1e-3, 100)
    assert optimizer.param_groups[0]["warmup_steps"] == 7
    assert schedule.get_last_lr() == [1e-3]
    with pytest.raises(ValueError, match="--lr_scheduler cosine with --optimizer schedule_free: it needs none"):
        with_schedule(TrainOptions(optimizer="schedule_free", lr_scheduler="cosine"), groups(), 1e-3, 100)


def test_prodigy_takes_one_rate():
    pytest.importorskip("prodigyopt")
    made = make_optimizer(OptimizerOptions(optimizer="prodigy"), groups(1.0) + groups(0.25), 1.0)
    assert [group["lr"] for group in made.param_groups] == [1.0, 1.0]


def test_constant_with_warm_up_steps_warms_up():
    _, schedule = with_schedule(TrainOptions(lr_warmup_steps=4), groups(), 1e-3, 100)
    assert schedule.get_last_lr() == [0.0]


def test_lora_plus():
    kind = FAMILIES["lora"]
    adapter = kind(torch.empty(8, 4, device="meta"), kind.Config(lora_plus_ratio=16.0))
    slow, fast = adapter.parameter_groups(1e-4)
    assert slow["params"][0] is adapter.A
    assert fast["params"][0] is adapter.B
    assert (slow["lr"], fast["lr"]) == (1e-4, 16e-4)
