"""Before a run is started: what of its pictures is used, what will be refused, what memory and time it takes.

Everything that needs no model is looked at here. For the rest three steps are really trained, in a process and a
folder of their own that are gone afterwards; the app's own model makes room for them on an accelerator.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_adapters import FAMILIES
from train import preflight, records
from train.bases import inspect_base
from train.data import check_data, read_folder
from train.dreambooth import resolve
from train.settings import settle
from ui.choices import Choices, parsed
from ui.outcome import cause, last_log
from ui.process import Process
from ui.runs import Run, Runs

STEPS = 3
LEFT_OUT = ("num_train_epochs", "validation_steps", "validation_epochs", "pilot", "early_stop")
"""Options that a trial of a few steps has no use for."""
TRIAL = {"max_train_steps": STEPS, "num_validation_images": 0, "checkpointing_steps": 0}
BUSY = "Memory and time: told once no other run trains."


@dataclass(frozen=True)
class Found:
    """What is known so far: `lines` for people, the number of steps, and seconds of one once some were tried."""

    lines: tuple[str, ...]
    steps: int
    seconds_per_step: float | None = None

    def more(self, *lines: str) -> Found:
        """With further lines."""
        return replace(self, lines=(*self.lines, *lines))


def check(choices: Choices, runs: Runs, run: Run, values: Mapping[str, Any]) -> Iterator[Found]:
    """Yield what is known so far, again and again. Raises what refuses the run, before it can fail."""
    if not run.pictures.list():
        raise ValueError(f"{run.name} has no pictures; add some of the subject")
    with tempfile.TemporaryDirectory(prefix="trial-") as place:
        folder, path = Path(place) / "out", Path(place) / "run.toml"
        path.write_text(choices.toml(values, run.pictures.path, folder), "utf-8")
        found = look(path)
        yield found
        if runs.busy:
            yield found.more(BUSY)
            return
        trial = {**values, **dict.fromkeys(LEFT_OUT), **TRIAL}
        path.write_text(choices.toml(trial, run.pictures.path, folder), "utf-8")
        with runs.trial():
            yield from _measure(path, folder, found)


def look(path: Path) -> Found:
    """What can be said without a model of the run of a configuration file."""
    config, _ = parsed(path)
    check_data(config)
    preflight.contradictions(config)
    info = inspect_base(config)
    config = resolve(config, info)
    folder = read_folder(config, config.resolution, config.seed, info.multiple)
    config = settle(config, FAMILIES[config.adapter], len(folder), 1)
    said = f"{config.max_train_steps} steps of {config.adapter} at learning rate {config.learning_rate:.3g}"
    return Found((*folder.report(), said), config.max_train_steps)


def _measure(path: Path, folder: Path, found: Found) -> Iterator[Found]:
    log = path.with_name("log.txt")
    started = time.time()
    process = Process.launch(["--config", str(path)], log)
    try:
        while process.alive:
            yield found.more(*_memory(log), f"Trying {STEPS} steps: {time.time() - started:.0f} s")
            time.sleep(0.5)
    finally:
        process.kill()
    text, history = last_log(log), records.read(folder)
    if len(history) < STEPS:
        raise ValueError(cause(text)[1])
    seconds = (history[-1]["time"] - history[0]["time"]) / (len(history) - 1)
    begin, whole = history[0]["time"] - started, round(seconds * found.steps)
    clock = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    time_of = f"{begin:.0f} s to begin, then {seconds:.2g} s a step: {clock} for {found.steps} steps, besides pictures"
    yield replace(found.more(*_memory(log), f"Time: {time_of}"), seconds_per_step=seconds)


def _memory(log: Path) -> list[str]:
    return re.findall(r"^Memory: .+$", last_log(log), re.M)
