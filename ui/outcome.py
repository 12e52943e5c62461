"""How far a run is, and how it ended, in plain words: read from its records, its log and its process."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train import records
from train.flags import read_config
from train.progress import Clock
from ui.process import Process

ACTIVE = ("starting", "training", "stopping", "finishing")
"""States of a run whose process lives."""
TAIL = 2**16
"""Bytes of the end of a log that are read."""
MEMORY = ("out of memory", "can't allocate memory", "MemoryError")
NO_MEMORY = (
    "out of memory: lower the batch size or the resolution, switch gradient checkpointing on, "
    "or choose a mixed precision of bf16"
)
KILLED = (
    "The training process was killed from outside, most often by the computer because memory ran out: lower the batch "
    "size or the resolution, or switch gradient checkpointing on. Resume goes on from the last checkpoint."
)
VANISHED = (
    "The training process ended without a word: it was killed, or the computer was switched off. "
    "Resume goes on from the last checkpoint."
)
ERROR = re.compile(r"^error: (.+)$", re.M)
"""The one line of the trainer for what is no bug."""
LAUNCHER = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*.*CalledProcessError: .*\n?")
"""What accelerate's launcher adds when the training returned an error."""


@dataclass(frozen=True)
class Outcome:
    """`state`: draft, queued, starting, training, finishing, stopping, stopped, done, failed or killed."""

    state: str
    step: int = 0
    total: int = 0
    loss: float | None = None
    """Mean of the last twentieth of the steps, at least one."""
    left: str = ""
    """Time left, as h:mm:ss, while it trains."""
    said: str = ""
    """Why it ended, if not well."""


def outcome(folder: Path, log: Path, state: Mapping[str, Any], process: Process | None) -> Outcome:
    """Of the run in `folder`, given what is kept of its process."""
    history = records.read(folder)
    launched = float(state.get("launched") or 0)
    moved = _changed(folder / records.FILE) >= launched  # since the last start
    total = _total(folder, int(state.get("total") or 0), launched)
    step = int(history[-1]["step"]) if history else 0
    tail = history[-max(1, len(history) // 20) :]
    facts: dict[str, Any] = {"step": step, "total": total}
    facts["loss"] = sum(record["loss"] for record in tail) / len(tail) if tail else None
    if state.get("queued"):
        return Outcome("queued", **facts)
    if not launched:
        return Outcome("draft")
    if process is None and time.time() - launched < 10:
        return Outcome("starting", **facts)
    if process is not None and not state.get("ended") and process.alive:
        if state.get("asked"):
            return Outcome("stopping", **facts)
        if not (history and moved):
            return Outcome("starting", **facts)
        return Outcome("finishing" if step >= total else "training", left=left(history, total), **facts)
    text, asked = last_log(log, int(state.get("log_from") or 0)), state.get("asked")
    errors = ERROR.findall(text)
    if asked != "kill" and not errors and _changed(folder / "adapter.safetensors") >= launched:
        return Outcome("stopped" if asked and step < total else "done", **facts)
    if asked == "kill":
        return Outcome("killed", said="It was stopped at once: what had not been saved is lost.", **facts)
    if asked and not errors:
        return Outcome("stopped", said="It was stopped before there was anything to save.", **facts)
    ended, said = cause(text)
    return Outcome(ended, said=said, **facts)


def cause(text: str) -> tuple[str, str]:
    """Whether a training failed or was killed, and why, from the log of its last start."""
    errors = ERROR.findall(text)
    if errors:
        return "failed", errors[-1]
    own = LAUNCHER.sub("", text).strip()
    if any(word.lower() in own.lower() for word in MEMORY):
        return "failed", NO_MEMORY
    if "Traceback (most recent call last)" in own:
        return "failed", f"It ended by a mistake of the program: {own.splitlines()[-1]}. The log says where."
    signal = re.search(r"died with <Signals\.(\w+)", text)
    if signal:
        return "killed", KILLED if signal[1] == "SIGKILL" else f"The training process was ended by {signal[1]}."
    return "killed", VANISHED


def last_log(log: Path, start: int = 0) -> str:
    """The end of a log from byte `start` on."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def left(history: Sequence[Mapping[str, float]], total: int) -> str:
    """Time left, told as the trainer tells it, from the times of the steps of its last start."""
    timed = [record for record in history if "time" in record][-200:]
    times = iter([record["time"] for record in timed])
    clock, said = Clock(total, now=lambda: next(times)), ""
    for record in timed:
        said = clock.left(record)
    return said


def _total(folder: Path, asked: int, launched: float) -> int:
    """Steps in all; the trainer writes how many epochs are."""
    path = folder / "config.toml"
    if _changed(path) >= launched > 0:
        try:
            return int(read_config(path)["max_train_steps"])
        except (ValueError, OSError, KeyError, TypeError):
            pass
    return asked


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
