"""The only training loop: it yields a record per optimizer step, so that a script, a test or a UI can drive it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from diffusion_adapters import Adapter, AdapterSet
from diffusion_adapters.options import Options, option
from train.bases import Base
from train.objective import Objective

LOG = logging.getLogger("train")
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    title: ClassVar[str] = "training"
    max_train_steps: int = option(500, "optimizer steps", ge=1)
    train_batch_size: int = option(1, "pictures per step, process and accumulation", ge=1)
    gradient_accumulation_steps: int = option(1, "batches whose gradients are added up for one step", ge=1)
    gradient_checkpointing: bool = option(False, "compute activations twice to keep fewer in memory")
    learning_rate: float | None = option(None, "learning rate (default: the family's own)", gt=0)
    scale_lr: bool = option(False, "multiply the learning rate by pictures per step")
    lr_scheduler: str = option("constant", "course of the learning rate", choices=SCHEDULES)
    lr_warmup_steps: int = option(0, "steps in which the learning rate rises from 0", ge=0)
    lr_num_cycles: int = option(1, "restarts of cosine_with_restarts", ge=1)
    lr_power: float = option(1.0, "power of polynomial", gt=0)
    adam_beta1: float = option(0.9, "AdamW: decay of the mean of gradients", ge=0, lt=1)
    adam_beta2: float = option(0.999, "AdamW: decay of the mean of squared gradients", ge=0, lt=1)
    adam_weight_decay: float = option(1e-2, "AdamW: weight decay", ge=0)
    adam_epsilon: float = option(1e-8, "AdamW: added to the denominator", gt=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm", gt=0)
    mixed_precision: str | None = option(
        None,
        "precision of the frozen base and of its arithmetic (default: what accelerate says)",
        choices=("no", "fp16", "bf16"),
    )
    seed: int = option(0, "seed of everything that is drawn", ge=0)


class Dataset(Protocol):
    """What the loop needs of its data: the samples of a run by number."""

    def __len__(self) -> int: ...

    def batch(self, numbers: list[int], seed: int) -> dict[str, Tensor]: ...

    def names(self, numbers: list[int], seed: int) -> list[str]: ...


class TrainingModule(nn.Module):
    """The frozen denoiser and its adapters in one module, as DDP and FSDP want it."""

    def __init__(self, base: Base, adapters: AdapterSet, objective: Callable[..., Any]) -> None:
        super().__init__()
        self.denoiser = base.denoiser
        self.adapters = adapters
        self.__dict__["base"] = base
        self.objective = objective

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the batch, and its parts by name."""
        return self.objective(self.base, self.denoiser, self.adapters, batch)


def make_accelerator(options: TrainOptions) -> Accelerator:
    """The accelerator of a run: device and processes as `accelerate launch` says."""
    AcceleratorState._reset_state()  # of a run before in this process, whose precision it would keep
    steps, precision = options.gradient_accumulation_steps, options.mixed_precision
    try:
        accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=steps)
    except ValueError as error:
        raise ValueError(f"--mixed_precision {precision}: {error}") from None
    refused = {"cpu": "fp16", "mps": "bf16"}.get(accelerator.device.type)
    if accelerator.mixed_precision == refused:
        raise ValueError(f"--mixed_precision {refused} does not work on {accelerator.device.type}; use another, or no")
    return accelerator


def learning_rate(options: TrainOptions, family: type[Adapter], processes: int) -> float:
    """The learning rate in use: given or the family's own, times the samples per step if `--scale_lr`."""
    rate = options.learning_rate or family.learning_rate
    samples = options.train_batch_size * options.gradient_accumulation_steps * processes
    return rate * samples if options.scale_lr else rate


def optimizer_groups(adapters: Iterable[Adapter], rate: float) -> list[dict[str, Any]]:
    """The groups of all adapters, those of equal settings joined: one fast update instead of one per projection."""
    joined: dict[tuple[Any, ...], dict[str, Any]] = {}
    for adapter in adapters:
        for group in adapter.parameter_groups(rate):
            settings = {name: value for name, value in group.items() if name != "params"}
            joined.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})["params"] += group["params"]
    return list(joined.values())


def train(
    accelerator: Accelerator,
    options: TrainOptions,
    base: Base,
    adapters: AdapterSet,
    dataset: Dataset,
    *,
    rate: float,
    objective: Callable[..., tuple[Tensor, dict[str, Tensor]]] = Objective(),  # noqa: B008
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, float]]:
    """Train the adapters; yield {"step", "loss", "lr", "grad_norm"} after each optimizer step.

    `objective` makes the loss of a batch and names its parts; those of a loss of several parts are yielded as well.
    `stop` is asked after each step. Raises RuntimeError, before the step is taken, if the loss is not finite.
    """
    module = TrainingModule(base, adapters, objective)
    own = [m for m in adapters.modules() if isinstance(m, Adapter)]
    for parameter in adapters.parameters():
        parameter.data = parameter.data.float()
    if options.gradient_checkpointing:
        base.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    betas = (options.adam_beta1, options.adam_beta2)
    optimizer = torch.optim.AdamW(
        optimizer_groups(own, rate), betas=betas, eps=options.adam_epsilon, weight_decay=options.adam_weight_decay
    )
    # Not prepared: accelerate would step it once per process. Here one step of the schedule is one optimizer step.
    schedule = get_scheduler(
        options.lr_scheduler,
        optimizer,
        num_warmup_steps=options.lr_warmup_steps,
        num_training_steps=options.max_train_steps,
        num_cycles=options.lr_num_cycles,
        power=options.lr_power,
    )
    module, optimizer = accelerator.prepare(module, optimizer)
    _announce(accelerator, options, len(dataset), adapters, rate)
    parameters = [p for p in adapters.parameters() if p.requires_grad]
    micro = accelerator.num_processes * options.train_batch_size
    adapters.train()
    for step in range(1, options.max_train_steps + 1):
        current, norm, totals = schedule.get_last_lr()[0], 0.0, defaultdict[str, float](float)
        for part in range(options.gradient_accumulation_steps):
            first = ((step - 1) * options.gradient_accumulation_steps + part) * micro
            first += accelerator.process_index * options.train_batch_size
            numbers = list(range(first, first + options.train_batch_size))
            batch = _on(dataset.batch(numbers, options.seed), accelerator.device)
            with accelerator.accumulate(module):
                value, parts = module(batch)
                named = {"loss": value.detach(), **(parts if len(parts) > 1 else {})}
                means = accelerator.reduce(torch.stack(list(named.values())), "mean").tolist()
                mean = means[0]
                if not torch.isfinite(torch.tensor(mean)):
                    raise RuntimeError(_not_finite(step, mean, current, dataset.names(numbers, options.seed)))
                for name, part_mean in zip(named, means, strict=True):
                    totals[name] += part_mean / options.gradient_accumulation_steps
                accelerator.backward(value)
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(parameters, options.max_grad_norm))
                optimizer.step()
                optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            schedule.step()
        if step == 1:
            _check_coverage(adapters)
        yield {"step": step, **totals, "lr": current, "grad_norm": norm}
        if accelerator.reduce(torch.tensor(float(stop()), device=accelerator.device), "sum") > 0:  # all stop, or none
            break


def _on(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value if name == "seeds" else value.to(device) for name, value in batch.items()}


def _not_finite(step: int, value: float, rate: float, names: list[str]) -> str:
    pictures = ", ".join(dict.fromkeys(names))
    return (
        f"the loss is {value} at step {step}, learning rate {rate:.3g}, pictures {pictures}; training stopped and "
        "nothing was saved: lower --learning_rate, or use --mixed_precision bf16 or no instead of fp16"
    )


def _check_coverage(adapters: AdapterSet) -> None:
    silent = [path for path, called in adapters.coverage().items() if not called]
    if silent:
        raise RuntimeError(
            f"{len(silent)} adapted projections were never used, first {silent[0]}: their attention processors were "
            "replaced after adapters were added, or this base does not call them; leave them out by --target_modules"
        )


def _announce(
    accelerator: Accelerator, options: TrainOptions, examples: int, adapters: AdapterSet, rate: float
) -> None:
    if not accelerator.is_main_process:
        return
    total = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    count = sum(parameter.numel() for parameter in adapters.parameters())
    for line in (
        "***** Running training *****",
        f"  Num examples = {examples}",
        f"  Num Epochs = {-(-options.max_train_steps * total // examples)}",
        f"  Instantaneous batch size per device = {options.train_batch_size}",
        f"  Total train batch size (w. parallel, distributed & accumulation) = {total}",
        f"  Gradient Accumulation steps = {options.gradient_accumulation_steps}",
        f"  Total optimization steps = {options.max_train_steps}",
        f"  Trained parameters = {count:,}, learning rate = {rate:.3g}",
        f"  Device = {accelerator.device}, mixed precision = {accelerator.mixed_precision}",
    ):
        LOG.info(line)
