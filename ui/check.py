"""Before a run is started: what of its pictures is used, what will be refused, what memory and time it takes.

Everything that needs no model is looked at here. For the rest three steps are really trained, in a process and a
folder of their own that are gone afterwards; the app's own model makes room for them on an accelerator.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from train import records
from ui.choices import Choices
from ui.entry import ERRORS
from ui.look import Found, look
from ui.outcome import cause, last_log
from ui.process import Process
from ui.runs import Run, Runs

STEPS = 3
LEFT_OUT = ("num_train_epochs", "validation_steps", "validation_epochs", "pilot", "early_stop")
"""Options that a trial of a few steps has no use for."""
TRIAL = {"max_train_steps": STEPS, "num_validation_images": 0, "checkpointing_steps": 0}
BUSY = "Memory and time: told once no other run trains."


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


def report(found: Iterable[Found], say: Callable[[BaseException], str]) -> Iterator[str]:
    """What is known so far as a text for people; what refuses the run stands at its end, as `say` puts it."""
    known: tuple[str, ...] = ()
    try:
        for now in found:
            known = tuple(say(ValueError(line)) for line in now.lines)
            yield "\n".join([*known, *([now.now] if now.now else [])])
    except ERRORS as error:
        yield "\n".join([*known, f"Refused: {say(error)}"])


def _measure(path: Path, folder: Path, found: Found) -> Iterator[Found]:
    log = path.with_name("log.txt")
    started = time.time()
    process = Process.launch(["--config", str(path)], log)
    try:
        while process.alive:
            trying = f"Trying {STEPS} steps: {time.time() - started:.0f} s"
            yield replace(found.more(*_memory(log)), now=trying)
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
