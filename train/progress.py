"""What a run shows: log lines, and a bar with loss, learning rate and time left, or plain lines without a terminal."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from train.redact import redact

CONSOLE = Console(soft_wrap=True, highlight=False)
LINES = 10
"""Lines that stand for the bar where there is no terminal."""
ONE_PRESS = 1.0
"""Seconds in which signals are one: a terminal sends Ctrl-C to all processes, and the launcher sends it on."""
R = TypeVar("R")


class _Lines(logging.Handler):
    """Log lines through the console that also draws the bar, so that they do not run into each other."""

    def emit(self, record: logging.LogRecord) -> None:
        CONSOLE.print(redact(self.format(record)), markup=False)


def show_log() -> None:
    """Print what the logger `train` says, once however often this is called, and quiet what others say of loading."""
    import diffusers.utils.logging
    import transformers.utils.logging

    CONSOLE.quiet = os.environ.get("RANK", "0") != "0"  # of several processes one speaks
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    logger = logging.getLogger("train")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Lines()]
    logger.propagate = False


def follow(records: Generator[dict[str, float], None, R], total: int, interrupt: Interrupt) -> R:
    """Run a training generator to its end while showing it; returns what the generator returns.

    After the last step `interrupt` is released: a Ctrl-C then ends the program as usual.
    """
    columns: list[Any] = [TextColumn("Steps"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")]
    columns += [TimeElapsedColumn(), TextColumn("{task.fields[left]}")]
    bar = Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal)
    task = bar.add_task("", total=total, said="", left="")
    smooth, clock = None, Clock(total)
    try:
        while True:
            record = next(records)
            smooth = record["loss"] if smooth is None else 0.95 * smooth + 0.05 * record["loss"]
            said, step = f"loss {smooth:.4f}  lr {record['lr']:.2e}", int(record["step"])
            total = clock.total = int(record.get("total", total))
            left = clock.left(record)
            if not bar.live.is_started:
                bar.start()
            bar.update(task, completed=step, total=total, said=said, left=left)
            if not CONSOLE.is_terminal and (step == total or step % max(1, total // LINES) == 0):
                CONSOLE.print(f"step {step}/{total}  {said}  {left}")
            if step == total:
                bar.stop()
                interrupt.release()
    except StopIteration as end:
        return end.value
    finally:
        bar.stop()
        records.close()


class Clock:
    """Tells the time left from the steps alone and from the pauses for pictures alone, of which a run knows the number.

    The first step of this process is left out: it compiles, allocates and warms up. `paused` in a record is the seconds
    since its step was done that were no training, `pauses_left` how many such pauses are to come.
    """

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.total, self.now = total, now
        self.last: float | None = None
        self.steps, self.stepping, self.pauses, self.pausing = 0, 0.0, 0, 0.0

    def left(self, record: Mapping[str, float]) -> str:
        """Time left after this record, as h:mm:ss."""
        now, paused = self.now(), record.get("paused", 0.0)
        if paused:
            self.pauses, self.pausing = self.pauses + 1, self.pausing + paused
        if self.last is not None:
            self.steps, self.stepping = self.steps + 1, self.stepping + now - self.last - paused
        self.last = now
        todo = self.total - int(record["step"])
        if todo and not self.steps:
            return "-:--:-- left"
        seconds = todo * self.stepping / max(self.steps, 1)
        seconds += record.get("pauses_left", 0) * self.pausing / max(self.pauses, 1)
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02} left"


class Interrupt:
    """Ctrl-C or SIGTERM, once: `interrupt()` is true, the loop finishes its step and saves. Twice: as usual."""

    def __init__(self) -> None:
        self.asked, self.since = False, 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._note) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __call__(self) -> bool:
        return self.asked

    def _note(self, kind: int, _: object) -> None:
        if self.asked and time.monotonic() - self.since > ONE_PRESS:
            self.release()
            os.kill(os.getpid(), kind)
        elif not self.asked:
            self.asked, self.since = True, time.monotonic()
            CONSOLE.print(
                "Stopping after this step; what is trained so far will be saved. Press Ctrl-C again to stop now."
            )

    def release(self) -> None:
        """Give the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())
