"""What looks at a training while it runs: trackers, and pictures of the validation prompts from the live modules."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from diffusion_adapters import set_adapters
from train import output, report
from train.bases import sample
from train.data import Folder
from train.engine import Trainer
from train.pilot import AXES, Pilot
from train.processes import sharded
from train.records import Journal
from train.results import Finished, save_config, validation_prompts
from train.trackers import Trackers

LOG = logging.getLogger("train")


class Watch:
    """Called with each record of the loop, on every process; only the main one writes. `stop` asks the loop to end."""

    def __init__(self, accelerator: Accelerator, config: Any, name: str, folder: Folder) -> None:
        """Start the trackers, load the pilot's encoders. `name`: of the adapter."""
        self.accelerator, self.config, self.name = accelerator, config, name
        self.trackers = Trackers(accelerator, config, f"dreambooth-{config.adapter}", config.output_dir)
        self.every = period(config, len(folder), accelerator.num_processes)
        self.prompts = validation_prompts(config)
        self.pilot: Pilot | None = None
        if config.pilot and self._draws:
            shown = [example.images[0] for example in folder.examples[:32]]
            self.pilot = Pilot(config, self.prompts, shown, accelerator.device)
        self.records: list[dict[str, float]] = []
        self.journal: Journal | None = None

    def begin(self, run: Finished, trainer: Trainer) -> None:
        """Look at the run of `trainer` from now on, and write config.toml; `run` saves its adapter."""
        self.run, self.trainer, self.base = run, trainer, run.base
        self.records += trainer.history
        if self.accelerator.is_main_process:
            save_config(run.config, run.adapter)
            self.journal = Journal(self.config.output_dir, self.records)
        if self.pilot is not None:
            self.pilot.begin(self.draw, trainer.step)

    @property
    def stop(self) -> bool:
        """Whether the pilot has seen enough."""
        return self.pilot is not None and self.pilot.stop

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.trackers.finish()

    def __call__(self, record: dict[str, float]) -> dict[str, float]:
        """Send the record on; look if it is time to, and note in it the seconds that took. Keeps and returns it."""
        step = int(record["step"])
        self.trackers.log({key: value for key, value in record.items() if key != "step"}, step)
        self.records.append(record)
        last = self.config.max_train_steps
        if self.every and (step % self.every == 0 or (step == last and self.config.pilot)):
            started = time.monotonic()
            self.look(step)
            record["paused"] = time.monotonic() - started
        record["pauses_left"] = (last // self.every - step // self.every) if self.every else 0
        if self.journal is not None:
            self.journal.add(record)
        return record

    def look(self, step: int) -> None:
        """Draw the validation prompts at each of `--validation_adapter_weights`, from the same seeds every time."""
        count, weights = self.config.num_validation_images, self.config.validation_adapter_weights
        if count and self._draws:
            rows = [(prompt, weight) for prompt in self.prompts for weight in weights]
            scored = self.pilot.look(step, self.draw, self._save) if self.pilot is not None else None
            if scored is not None and weights == (1.0,):
                images = scored
            else:
                seeds = [self.config.seed + i for i in range(count)]
                images = [self.draw([prompt] * count, seeds, weight) for prompt, weight in rows]
            if self.accelerator.is_main_process:
                sheet = report.strip(images)
                output.write(report.picture_path(self.config.output_dir, step), lambda path: sheet.save(path, "PNG"))
                said = [f"{prompt} (weight {weight:g})" for prompt, weight in rows for _ in range(count)]
                self.trackers.images("validation", [image for row in images for image in row], said, step)
                if self.pilot is not None:
                    self.trackers.log({name: self.pilot.rows[-1][name] for name in AXES}, step)
        self.accelerator.wait_for_everyone()

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], weight: float = 1.0) -> list[Image.Image]:
        """One picture per prompt and seed with the adapter at `weight`, as it is saved."""
        with self.trainer.inference():
            set_adapters(self.base.pipeline, [self.name] if weight else [], [weight] if weight else None)
            settings = {"steps": self.config.num_inference_steps, "guidance_scale": self.config.guidance_scale}
            return sample(self.base, prompts, seeds, side=self.config.resolution, **settings)

    def settle(self) -> Finished:
        """The run that results are written of, within `trainer.inference()`: at the pilot's pick, if there is one."""
        step = self.pilot.choose(self.base.pipeline, self.run.save) if self.pilot is not None else None
        return self.run if step is None else dataclasses.replace(self.run, picked=step)

    def _save(self, path: Path) -> None:
        with self.trainer.inference():
            if self.accelerator.is_main_process:
                self.run.save(path)

    @property
    def _draws(self) -> bool:
        """Whether this process draws pictures: the main one, or all where a forward needs every process."""
        return self.accelerator.is_main_process or sharded(self.accelerator)


def period(config: Any, examples: int, processes: int) -> int:
    """Steps between two looks; 0 for none. `--validation_epochs` counts passes over the pictures.

    Without either the pilot looks when a checkpoint is written, or ten times.
    """
    if config.validation_steps:
        return config.validation_steps
    if config.pilot and not config.validation_epochs:
        return config.checkpointing_steps or max(1, config.max_train_steps // 10)
    per_step = config.train_batch_size * config.gradient_accumulation_steps * processes
    return -(-config.validation_epochs * examples // per_step) if config.validation_epochs else 0
