"""What the loop says: the lines before the first step, and the errors that end it."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

from diffusion_adapters import AdapterSet

if TYPE_CHECKING:
    from train.engine import Trainer

LOG = logging.getLogger("train")


def step_seed(seed: int, step: int, process: int) -> int:
    """Seed of torch's own generator in one step of one process."""
    return int.from_bytes(hashlib.blake2b(f"step {seed}/{step}/{process}".encode(), digest_size=4).digest(), "little")


def not_finite(step: int, value: float, rate: float, names: list[str]) -> str:
    """Why training stops at a loss that is no number."""
    pictures = ", ".join(dict.fromkeys(names))
    return (
        f"the loss is {value} at step {step}, learning rate {rate:.3g}, pictures {pictures}; training stopped and "
        "nothing was saved: lower --learning_rate, or use --mixed_precision bf16 or no instead of fp16"
    )


def check_coverage(adapters: AdapterSet) -> None:
    """Raise RuntimeError if a projection with an adapter was not used."""
    silent = [path for path, called in adapters.coverage().items() if not called]
    if silent:
        raise RuntimeError(
            f"{len(silent)} adapted projections were never used, first {silent[0]}: their attention processors were "
            "replaced after adapters were added, or this base does not call them; leave them out by --target_modules"
        )


def announce(trainer: Trainer) -> None:
    """The lines that diffusers' examples begin with."""
    accelerator, options, examples = trainer.accelerator, trainer.options, len(trainer.dataset)
    if not accelerator.is_main_process:
        return
    total = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    count = sum(parameter.numel() for parameter in trainer.parameters)
    for line in (
        "***** Running training *****",
        f"  Num examples = {examples}",
        f"  Num Epochs = {-(-options.max_train_steps * total // examples)}",
        f"  Instantaneous batch size per device = {options.train_batch_size}",
        f"  Total train batch size (w. parallel, distributed & accumulation) = {total}",
        f"  Gradient Accumulation steps = {options.gradient_accumulation_steps}",
        f"  Total optimization steps = {options.max_train_steps}",
        f"  Trained parameters = {count:,}, learning rate = {options.learning_rate:.3g}",
        f"  Device = {accelerator.device}, mixed precision = {accelerator.mixed_precision}",
    ):
        LOG.info(line)
    if trainer.step:
        LOG.info(f"  Continuing training from global step {trainer.step}")
