"""What can be known to fail is known before anything is loaded: flags, upload, folders, disk, memory."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from diffusion_adapters.options import Options, option
from train import hub, memory, output, pilot, text, trackers
from train.bases import BaseInfo
from train.data import Folder, captions
from train.data.cache import check_space
from train.tasks import task_of

LOG = logging.getLogger("train")
C = TypeVar("C")
PLENTY = 50
"""A step of one picture at the base's own size holds at most a few times the denoiser's bytes: with this many, no more
is asked."""


@dataclass(frozen=True, kw_only=True)
class PreflightOptions(Options):
    title: ClassVar[str] = "checks"
    skip_preflight: bool = option(False, "train even if memory or disk look too small for it")


def contradictions(config: Any) -> None:
    """Raise ValueError for flags that cannot be meant together, naming both and what to do."""
    names = trackers.check(config)
    if config.hub_token and "wandb" in names:
        raise ValueError(
            "--report_to wandb with --hub_token: wandb keeps the command line, and the token with it; "
            "run `hf auth login` instead and leave --hub_token out"
        )
    if config.hub_token and not config.push_to_hub:
        raise ValueError("--hub_token does nothing without --push_to_hub; add that or leave the token out")
    if config.validation_steps and config.validation_epochs:
        raise ValueError("--validation_steps and --validation_epochs both say when to look; give one of them")
    pilot.check(config)
    config.check_stages()


def check(accelerator: Accelerator, config: C, info: BaseInfo, folder: Folder, attach: Callable[[nn.Module], Any]) -> C:
    """Check everything, on every process, and log what will be used; returns `config` with the repository resolved.

    `attach` puts a new adapter into a denoiser. Raises ValueError or OSError, having made no folder.
    """
    options: Any = config
    contradictions(options)
    text.check(options, info.text_encoders, [options.instance_prompt, *(example.prompt for example in folder.examples)])
    blank = info.denoiser()
    numbers = sum(value.numel() for value in attach(blank).state_dict().values()) if blank else 0
    if not accelerator.is_main_process:
        return config
    if blank is not None:
        check_memory(accelerator, options, info, folder, attach, _size(blank))
    repository = hub.prepare(options, options.output_dir)
    output.prepare(options.output_dir, 0 if options.skip_preflight else disk(options, 4 * numbers))
    if options.latents_cache_dir is not None and not options.skip_preflight:
        views = sum(len(example.keys) * math.prod(example.bucket) for example in folder.examples)
        views += options.uses_images * options.num_class_images * sum(map(math.prod, folder.buckets))
        texts = captions.all_texts([example.prompt for example in folder.examples], options)
        long = any("CLIP" not in kind for kind in info.text_encoders.values())
        check_space(options.latents_cache_dir, views, len(texts) + 1, (8 if long else 1) * 2**20)
    for line in folder.report():
        LOG.info(line)
    return dataclasses.replace(options, hub_model_id=repository)


def disk(config: Any, adapter: int) -> int:
    """Bytes that a run will have written to its output folder: adapter, its export, checkpoints with their state."""
    state = adapter * (3 + 2 * config.use_ema)  # Adam's two moments; the average, and the values it is not
    every, limit = config.checkpointing_steps, config.checkpoints_total_limit
    count = -(-config.max_train_steps // every) if every else 0
    return 2 * adapter + (adapter + state) * (count if limit is None else min(count, limit + 1))


def check_memory(
    accelerator: Accelerator,
    config: Any,
    info: BaseInfo,
    folder: Folder,
    attach: Callable[[nn.Module], Any],
    numbers: int,
) -> None:
    """Log what the run needs and what is free. Raises ValueError with remedies if it cannot fit.

    `numbers`: of the denoiser. A small one is known to fit without a closer look.
    """
    device, dtype = accelerator.device, _dtype(accelerator)
    room = free(device, accelerator.num_processes if device.type == "cpu" else 1)
    size = max(folder.buckets, key=lambda size: size[0] * size[1])
    weights = numbers * dtype.itemsize
    pictures = config.train_batch_size * (2 if config.with_prior_preservation else 1) * max(1, _area(size, info.side))
    if PLENTY * weights * pictures < room:
        LOG.info(f"Memory: {memory.show(room)} free on {device}, {memory.show(weights)} for the denoiser")
        return
    try:
        needed = memory.estimate(info, config, attach, task_of(config).foreseen(config), device, dtype, size)
    except Exception as error:  # a pipeline whose steps depend on numbers: no reason not to train
        said = " ".join(str(error).split())[:200]
        LOG.info(f"Memory: {memory.show(room)} free on {device}; a step could not be foreseen ({said})")
        return
    line = f"Memory: {needed} needed, {memory.show(room)} free on {device}"
    if needed.total > room and not config.skip_preflight:
        raise ValueError(f"{line[0].lower()}{line[1:]}; {'; '.join(remedies(config, needed))}")
    LOG.info(line if needed.total < 0.9 * room else f"{line}: it will be tight")


def remedies(config: Any, needed: memory.Estimate) -> Iterator[str]:
    """What would make a run need less, the most effective first."""
    if needed.step > needed.base and not config.gradient_checkpointing:
        yield "use --gradient_checkpointing"
    if config.mixed_precision in (None, "no") and torch.cuda.is_available():
        yield "use --mixed_precision bf16"
    if config.quantization is None:
        yield "keep the denoiser in few bits by --quantization"
    if needed.step <= needed.base and not config.gradient_checkpointing:
        yield "use --gradient_checkpointing"
    if config.train_batch_size > 1:
        yield f"lower --train_batch_size {config.train_batch_size}, with more --gradient_accumulation_steps"
    yield f"lower --resolution {config.resolution}"
    yield "--skip_preflight tries it all the same"


def _dtype(accelerator: Accelerator) -> torch.dtype:
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def _size(denoiser: nn.Module) -> int:
    return sum(parameter.numel() for parameter in denoiser.parameters())


def _area(size: tuple[int, int], side: int) -> float:
    return size[0] * size[1] / side**2


def free(device: torch.device, processes: int = 1) -> int:
    """Bytes that are free on the device; of the RAM, the share of one of `processes`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    available = psutil.virtual_memory().available
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return (available if limit is None or used is None else min(available, limit - used)) // processes


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return None
