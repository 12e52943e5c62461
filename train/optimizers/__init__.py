"""Optimizers: those known by name, and any other of torch's interface by its dotted path."""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffusion_adapters.options import Options, option
from diffusion_adapters.registry import Registry, nearest

LOG = logging.getLogger("train")


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    title: ClassVar[str] = "optimizer"
    optimizer: str = option(
        "adamw", "adamw, adamw_8bit, prodigy, adafactor, schedule_free, or a dotted path: torch.optim.SGD"
    )
    optimizer_args: tuple[str, ...] | None = option(None, "settings of its own, each as NAME=VALUE: momentum=0.9")
    use_8bit_adam: bool = option(False, "the same as --optimizer adamw_8bit")
    adam_beta1: float = option(0.9, "decay of the mean of gradients", ge=0, lt=1)
    adam_beta2: float = option(0.999, "decay of the mean of squared gradients", ge=0, lt=1)
    adam_weight_decay: float = option(1e-2, "weight decay, of every optimizer known by name", ge=0)
    adam_epsilon: float = option(1e-8, "added to the denominator", gt=0)
    prodigy_beta3: float | None = option(None, "decay of Prodigy's step size (default: sqrt(beta2))", ge=0, lt=1)
    prodigy_decouple: bool = option(True, "decay weights in Prodigy as AdamW does")
    prodigy_use_bias_correction: bool = option(True, "correct Prodigy's means for their start at 0")
    prodigy_safeguard_warmup: bool = option(True, "keep a warm-up of the rate out of Prodigy's step size")


@dataclass(frozen=True)
class Kind:
    """An optimizer known by name."""

    path: str
    """Where its class is: package.module.Class."""
    package: str = "torch"
    """What to install for it."""
    settings: Callable[[OptimizerOptions], dict[str, Any]] = lambda options: {}
    learning_rate: float | None = None
    """To begin with, if not the family's own."""
    one_rate: bool = False
    """Whether it refuses groups whose rates differ."""
    averages: bool = False
    """Whether it trains at one place and is evaluated at another: it has `train()` and `eval()`."""


OPTIMIZERS: Registry[Kind] = Registry("optimizer", "train.optimizers")


def find_kind(options: OptimizerOptions) -> Kind:
    """The optimizer that the options name. Raises ValueError if there is none, or its package is missing."""
    name = options.optimizer
    if options.use_8bit_adam:
        if name.lower() not in ("adamw", "adamw_8bit"):
            raise ValueError(f"--use_8bit_adam is --optimizer adamw_8bit; leave it out, or --optimizer {name}")
        name = "adamw_8bit"
    if name.lower() in OPTIMIZERS:
        kind = OPTIMIZERS[name.lower()]
    elif "." in name:
        kind = Kind(name, name.split(".")[0])
    else:
        raise ValueError(f"--optimizer {name}: unknown, {nearest(name, OPTIMIZERS)}, or a dotted path: torch.optim.SGD")
    made = _locate(kind, name)
    return kind if "." not in name else Kind(name, kind.package, averages=callable(getattr(made, "eval", None)))


def make_optimizer(
    options: OptimizerOptions, groups: Sequence[Mapping[str, Any]], rate: float, warmup: int = 0
) -> torch.optim.Optimizer:
    """The optimizer of `groups`, each with its own `lr`. Raises ValueError for settings that it does not take.

    `warmup`: steps in which the rate rises, for an optimizer that has no need of a schedule.
    """
    kind = find_kind(options)
    made = _locate(kind, options.optimizer)
    accepted = inspect.signature(made).parameters
    settings = kind.settings(options) | ({"warmup_steps": warmup} if kind.averages and warmup else {})
    given = _given(options.optimizer_args or ())
    groups = [dict(group) for group in groups]
    if kind.one_rate and any(group["lr"] != rate for group in groups):
        LOG.info(f"{kind.path} takes one learning rate: that of every group is {rate:.3g}")
        groups = [group | {"lr": rate} for group in groups]
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for name in given:
            if name not in accepted:
                raise ValueError(f"--optimizer_args {name}: {kind.path} has no such setting, {nearest(name, accepted)}")
    try:
        optimizer = made(groups, lr=rate, **settings | given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--optimizer {options.optimizer}: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"--optimizer {options.optimizer}: {kind.path} is no optimizer of torch's interface")
    return optimizer


def _locate(kind: Kind, name: str) -> Any:
    module, _, attribute = kind.path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        remedy = f"pip install {kind.package}"
        raise ValueError(f"--optimizer {name} needs the package {kind.package} ({error}): {remedy}") from None
    except AttributeError:
        raise ValueError(f"--optimizer {name}: {module} has no {attribute}") from None


def _given(pairs: Sequence[str]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"--optimizer_args {pair!r}: write NAME=VALUE, such as weight_decay=0.01")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found
