"""What a run is told about training, and what follows from it: device, learning rate, optimizer, schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from diffusers.optimization import get_scheduler

from diffusion_adapters import Adapter
from diffusion_adapters.options import option
from train import optimizers
from train.optimizers import OptimizerOptions, find_kind
from train.text import TextOptions

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OptimizerOptions, TextOptions):
    title: ClassVar[str] = "training"
    max_train_steps: int = option(500, "optimizer steps", ge=1)
    num_train_epochs: int | None = option(None, "train for this many passes over the pictures instead", ge=1)
    train_batch_size: int = option(1, "pictures per step, process and accumulation", ge=1)
    gradient_accumulation_steps: int = option(1, "batches whose gradients are added up for one step", ge=1)
    gradient_checkpointing: bool = option(False, "compute activations twice to keep fewer in memory")
    learning_rate: float | None = option(None, "learning rate (default: the optimizer's or the family's own)", gt=0)
    scale_lr: bool = option(False, "multiply the learning rate by pictures per step")
    lr_scheduler: str = option("constant", "course of the learning rate", choices=SCHEDULES)
    lr_warmup_steps: int = option(0, "steps in which the learning rate rises from 0", ge=0)
    lr_num_cycles: int = option(1, "restarts of cosine_with_restarts", ge=1)
    lr_power: float = option(1.0, "power of polynomial", gt=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm", gt=0)
    use_ema: bool = option(False, "sample and save a moving average of the trained values")
    ema_decay: float = option(
        0.999, "what the average keeps of itself at each step, less in the first ones", ge=0, lt=1
    )
    mixed_precision: str | None = option(
        None,
        "precision of the frozen base and of its arithmetic (default: what accelerate says)",
        choices=("no", "fp16", "bf16"),
    )
    seed: int = option(0, "seed of everything that is drawn", ge=0)


T = TypeVar("T", bound="TrainOptions")

MAY_CHANGE = (
    *("max_train_steps", "num_train_epochs", "gradient_checkpointing"),
    *("pretrained_model_name_or_path", "revision", "variant"),  # what is there is compared, not where
)
"""Options that a resumed run may set anew."""


def settle(options: T, family: type[Adapter], pictures: int, processes: int) -> T:
    """The options with a learning rate and a number of steps in place of what they follow from. Raises ValueError.

    The rate is the given one, the optimizer's or the family's own, times the samples of a step if `--scale_lr`.
    """
    samples = options.train_batch_size * options.gradient_accumulation_steps * processes
    rate = options.learning_rate or find_kind(options).learning_rate or family.learning_rate
    steps = options.max_train_steps
    if options.num_train_epochs is not None:
        steps = -(-options.num_train_epochs * pictures // samples)
    found = {"learning_rate": rate * samples if options.scale_lr else rate, "max_train_steps": steps}
    return dataclasses.replace(options, scale_lr=False, num_train_epochs=None, **found)


def optimizer_groups(adapters: Iterable[Adapter], rate: float) -> list[dict[str, Any]]:
    """The groups of all adapters, those of equal settings joined."""
    return join_groups(group for adapter in adapters for group in adapter.parameter_groups(rate))


def join_groups(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """`groups` of equal settings as one: one fast update instead of one per projection."""
    joined: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in groups:
        settings = {name: value for name, value in group.items() if name != "params"}
        joined.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})["params"] += group["params"]
    return list(joined.values())


def make_optimizer(
    options: TrainOptions, groups: list[dict[str, Any]], rate: float, total: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimizer of `groups` and the course of its learning rate over `total` steps. Raises ValueError.

    A group with "steps", (first, last), has its course over those. They are taken out.
    Only the optimizer may be prepared by accelerate, which would step the schedule once per process.
    """
    averages = find_kind(options).averages
    name, warmup = options.lr_scheduler, options.lr_warmup_steps
    if averages and not name.startswith("constant"):
        raise ValueError(f"--lr_scheduler {name} with --optimizer {options.optimizer}: it needs none, use constant")
    if name == "constant" and warmup:
        name = "constant_with_warmup"
    spans = [group.pop("steps", (0, total)) for group in groups]
    optimizer = optimizers.make_optimizer(options, groups, rate, warmup)

    def course(first: int, last: int) -> Callable[[int], float]:
        schedule = get_scheduler(
            "constant" if averages else name,
            torch.optim.SGD([torch.zeros(1)], lr=rate),
            num_warmup_steps=warmup,
            num_training_steps=last - first,
            num_cycles=options.lr_num_cycles,
            power=options.lr_power,
        )
        factor: Callable[[int], float] = schedule.lr_lambdas[0]
        return lambda step: factor(min(max(step, first), last) - first)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [course(*span) for span in spans])
