"""What looks at a training while it runs: trackers, and pictures of the validation prompts from the live modules."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image

from diffusion_adapters import AdapterConfig, set_adapters
from diffusion_adapters.adapter_set import find_adapter_set
from train import output, report
from train.bases import Base, sample
from train.results import save_config, validation_prompts
from train.trackers import Trackers

LOG = logging.getLogger("train")
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


class Watch:
    """Called with each record of the loop, on every process; only the main one writes. `stop` asks the loop to end."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: Any,
        adapter: AdapterConfig,
        name: str,
        examples: int,
    ) -> None:
        """Start the trackers and write config.toml. `name`: of the adapter; `examples`: pictures per epoch."""
        self.accelerator, self.config, self.name = accelerator, config, name
        self.trackers = Trackers(accelerator, config, f"dreambooth-{config.adapter}", config.output_dir)
        self.every = period(config, examples, accelerator.num_processes)
        self.prompts = validation_prompts(config)
        self.stop = False
        self.records: list[dict[str, float]] = []
        if accelerator.is_main_process:
            save_config(config, adapter)

    def begin(self, base: Base, averaged: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext) -> None:
        """Look at `base`, whose denoiser has the adapter; within `averaged()` the adapter is as it is saved."""
        self.base, self.averaged = base, averaged

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.trackers.finish()

    def __call__(self, record: dict[str, float]) -> dict[str, float]:
        """Send the record on; look if it is time to, and note in it the seconds that took. Keeps and returns it."""
        step = int(record["step"])
        self.trackers.log({key: value for key, value in record.items() if key != "step"}, step)
        if self.every and step % self.every == 0:
            started = time.monotonic()
            self.look(step)
            record["paused"] = time.monotonic() - started
        record["total"] = self.config.max_train_steps
        record["pauses_left"] = (self.config.max_train_steps // self.every - step // self.every) if self.every else 0
        self.records.append(record)
        return record

    def look(self, step: int) -> None:
        """Draw the validation prompts at each of `--validation_adapter_weights`, from the same seeds every time."""
        count, weights = self.config.num_validation_images, self.config.validation_adapter_weights
        if self.config.num_validation_images and (self.accelerator.is_main_process or self._sharded):
            rows = [(prompt, weight) for prompt in self.prompts for weight in weights]
            seeds = [self.config.seed + i for i in range(count)]
            images = [self.draw([prompt] * count, seeds, weight) for prompt, weight in rows]
            if self.accelerator.is_main_process:
                sheet = report.strip(images)
                output.write(picture_path(self.config.output_dir, step), lambda path: sheet.save(path, "PNG"))
                said = [f"{prompt} (weight {weight:g})" for prompt, weight in rows for _ in seeds]
                self.trackers.images("validation", [image for row in images for image in row], said, step)
        self.accelerator.wait_for_everyone()

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], weight: float = 1.0) -> list[Image.Image]:
        """One picture per prompt and seed with the adapter at `weight`, as it is saved; disturbs no random state."""
        config, denoiser = self.config, self.base.denoiser
        adapters = find_adapter_set(denoiser)
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), self.averaged():
            adapters.eval()
            set_adapters(denoiser, [self.name] if weight else [], [weight] if weight else None)
            try:
                settings = {"steps": config.num_inference_steps, "guidance_scale": config.guidance_scale}
                return sample(self.base, prompts, seeds, side=config.resolution, **settings)
            finally:
                set_adapters(denoiser, [self.name], [1.0])
                adapters.train()

    @property
    def _sharded(self) -> bool:
        """Whether a forward needs every process."""
        return self.accelerator.distributed_type in SHARDED


def period(config: Any, examples: int, processes: int) -> int:
    """Steps between two looks; 0 for none. `--validation_epochs` counts passes over the pictures."""
    if config.validation_steps:
        return config.validation_steps
    per_step = config.train_batch_size * config.gradient_accumulation_steps * processes
    return -(-config.validation_epochs * examples // per_step) if config.validation_epochs else 0


def picture_path(folder: Path, step: int) -> Path:
    """Where the pictures of a step are kept: rows of prompts and weights, columns of seeds."""
    return folder / "validation" / f"step-{step:06d}.png"
