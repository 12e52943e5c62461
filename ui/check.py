"""Before a run is started: what of its pictures is used, what will be refused, what memory and time it takes.

Everything that needs no model is looked at here. For the rest three steps are really trained, in a process and a
folder of their own that are gone afterwards; the app's own model makes room for them on an accelerator.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping
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


def check(choices: Choices, runs: Runs, run: Run, values: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the lines known so far, again and again. Raises what refuses the run, before it can fail."""
    with tempfile.TemporaryDirectory(prefix="trial-") as place:
        folder, path = Path(place) / "out", Path(place) / "run.toml"
        path.write_text(choices.toml(values, run.pictures.path, folder), "utf-8")
        lines, steps = look(path)
        yield lines
        if runs.busy:
            yield [*lines, BUSY]
            return
        trial = {**values, **dict.fromkeys(LEFT_OUT), **TRIAL}
        path.write_text(choices.toml(trial, run.pictures.path, folder), "utf-8")
        with runs.trial():
            yield from _measure(path, folder, lines, steps)


def look(path: Path) -> tuple[list[str], int]:
    """What can be said without a model of the run of a configuration file, and its number of steps."""
    config, _ = parsed(path)
    check_data(config)
    preflight.contradictions(config)
    info = inspect_base(config)
    config = resolve(config, info)
    folder = read_folder(config, config.resolution, config.seed, info.multiple)
    config = settle(config, FAMILIES[config.adapter], len(folder), 1)
    said = f"{config.max_train_steps} steps of {config.adapter} at learning rate {config.learning_rate:.3g}"
    return [*folder.report(), said], config.max_train_steps


def _measure(path: Path, folder: Path, lines: list[str], steps: int) -> Iterator[list[str]]:
    log = path.with_name("log.txt")
    started = time.time()
    process = Process.launch(["--config", str(path)], log)
    try:
        while process.alive:
            yield [*lines, *_memory(log), f"Trying {STEPS} steps: {time.time() - started:.0f} s"]
            time.sleep(0.5)
    finally:
        process.kill()
    text, history = last_log(log), records.read(folder)
    if len(history) < STEPS:
        raise ValueError(cause(text)[1])
    seconds = (history[-1]["time"] - history[0]["time"]) / (len(history) - 1)
    begin, whole = history[0]["time"] - started, round(seconds * steps)
    clock = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    yield [
        *lines, *_memory(log),
        f"Time: {begin:.0f} s to begin, then {seconds:.2g} s a step: {clock} for {steps} steps, besides pictures",
    ]  # fmt: skip


def _memory(log: Path) -> list[str]:
    return re.findall(r"^Memory: .+$", last_log(log), re.M)
