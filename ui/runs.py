"""Trainings: each a folder with its pictures, its settings, its log and its results; one at a time, others queue.

Nothing about them is kept in the app. Two pages, or the app after a restart, read the same folders.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from train import output
from ui.choices import parsed
from ui.look import look
from ui.outcome import ACTIVE
from ui.pictures import clean_stem
from ui.process import Process
from ui.run import MAX_RUNS, SETTINGS, STATE, Run

__all__ = ["Run", "Runs"]


class Runs:
    """The runs in a folder; names that lead out of it are unknown."""

    def __init__(self, folder: Path, make_room: Callable[[], None] = lambda: None) -> None:
        """`make_room`: called in a thread of its own when a process that trains is started."""
        self.folder, self.make_room = folder, make_room
        self._watched: set[tuple[str, int]] = set()
        self._trials: set[object] = set()
        self.advance()

    @property
    def busy(self) -> bool:
        """Whether a training, or the trial of one, is at work."""
        return bool(self._trials) or any(run.outcome().state in ACTIVE for run in self.list())

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Inside, a training is tried."""
        own = object()
        self._trials.add(own)
        try:
            self._make_room()
            yield
        finally:
            self._trials.discard(own)

    def list(self) -> list[Run]:
        """All of them, the newest first."""
        found = [path.parent for path in self.folder.glob(f"*/{STATE}") if not path.parent.is_symlink()]
        return [Run(path) for path in sorted(found, key=lambda path: (-_made(path), path.name))]

    def find(self, name: str) -> Run:
        """By name. Raises ValueError."""
        if name and clean_stem(name) == name and (run := Run(self.folder / name)).state and not run.folder.is_symlink():
            return run
        raise ValueError(f"there is no run {name!r}; there are: {', '.join(r.name for r in self.list()) or 'none'}")

    def free(self, name: str) -> Run:
        """A run that is not there yet, by the name it would have. Raises ValueError if it may not be made."""
        name = clean_stem(name)
        if len(self.list()) >= MAX_RUNS:
            raise ValueError(f"there are {MAX_RUNS} runs, and no more are taken; delete some")
        if (self.folder / name).exists():
            raise ValueError(f"there is a run or a folder {name!r} already; choose another name")
        return Run(self.folder / name)

    def create(self, name: str) -> Run:
        """A run that has yet to be given pictures and settings. Raises ValueError."""
        run = self.free(name)
        run.folder.mkdir(parents=True)
        run.note(format_version=1, made=time.time())
        return run

    def remove(self, name: str) -> None:
        """Delete a run with all that it made. Raises ValueError while it trains."""
        run = self.find(name)
        with self._alone():
            if run.outcome().state in ACTIVE:
                raise ValueError(f"{name} is training; stop it first")
            (run.folder / STATE).unlink(missing_ok=True)
            shutil.rmtree(run.folder, ignore_errors=True)

    def start(self, name: str, settings: str) -> Run:
        """Train, or queue, a run with the text of its configuration file. Raises what a look at it refuses."""
        run = self.find(name)
        if run.outcome().state in (*ACTIVE, "queued"):
            raise ValueError(f"{name} has been started already")
        if not run.pictures.list():
            raise ValueError(f"{name} has no pictures; add some of the subject")
        if run.trained:
            raise ValueError(f"{name} has been trained; resume it, or begin a run under another name")
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / SETTINGS
            path.write_text(settings, "utf-8")
            look(path)
        output.write(run.settings, lambda part: part.write_text(settings, "utf-8"))
        return self._queue(run, parsed(run.settings)[0].max_train_steps, resume=False)

    def resume(self, name: str, steps: int | None = None) -> Run:
        """Go on from the last checkpoint, to as many steps as were meant or to `steps`. Raises ValueError."""
        run = self.find(name)
        now = run.outcome()
        if now.state in (*ACTIVE, "queued"):
            raise ValueError(f"{name} is {now.state}")
        if not run.settings.is_file():
            raise ValueError(f"{name} has never been started")
        if steps is not None and (steps < 1 or steps != int(steps)):
            raise ValueError(f"steps must be a whole number from 1 on, got {steps:g}")
        total = int(steps or now.total)
        if now.step >= total:
            raise ValueError(f"{name} is at step {now.step} of {total}; say up to which step it shall go on")
        return self._queue(run, total, resume=True)

    def stop(self, name: str, now: bool = False) -> Run:
        """Finish the step, save, end; `now`: end without saving. One that waits leaves the queue. Raises ValueError."""
        run = self.find(name)
        with self._alone():
            process, state = run.process, run.outcome().state
            if state == "queued":
                run.note(queued=None, asked=None)
                return run
            if state not in ACTIVE or process is None:
                raise ValueError(f"{name} is not training")
            run.note(asked="kill" if now else "stop")
        process.kill() if now else process.ask_to_stop()
        return run

    def advance(self) -> None:
        """Start the next in the queue if none is training, and see to it that the one after follows."""
        if not self.folder.is_dir():
            return
        with self._alone():
            runs = self.list()
            for run in runs:
                state, process = run.state, run.process
                if process is not None and not state.get("ended") and not process.alive:
                    run.note(ended=time.time())
            active = [run for run in runs if run.outcome().state in ACTIVE]
            waiting = sorted((run for run in runs if run.state.get("queued")), key=lambda run: run.state["queued"])
            if not active and waiting:
                active = [waiting[0]]
                self._launch(waiting[0])
            for run in active:
                self._watch(run)

    def place(self, run: Run) -> int:
        """In the queue, from 1; 0 if it is not in it."""
        waiting = sorted((r.state["queued"], r.name) for r in self.list() if r.state.get("queued"))
        return next((i for i, (_, name) in enumerate(waiting, 1) if name == run.name), 0)

    def _queue(self, run: Run, total: int, resume: bool) -> Run:
        run.note(queued=time.time(), total=total, resume=resume, asked=None)
        self.advance()
        return run

    def _launch(self, run: Run) -> None:
        state = run.state
        arguments = ["--config", str(run.settings.resolve()), "--max_train_steps", str(state["total"])]
        if state.get("resume"):
            arguments += ["--resume_from_checkpoint", "latest"]
        log_from = run.log.stat().st_size if run.log.exists() else 0
        run.note(queued=None, asked=None, pid=None, ended=None, log_from=log_from, launched=time.time())
        self._make_room()
        process = Process.launch(arguments, run.log)
        run.note(pid=process.pid, started=process.started)

    def _make_room(self) -> None:
        """Beside the start of the process, which takes longer than most pictures that are being drawn."""
        threading.Thread(target=self.make_room, daemon=True).start()

    def _watch(self, run: Run) -> None:
        """When it ends, start the next."""
        process = run.process
        if process is None or (key := (run.name, process.pid)) in self._watched:
            return
        self._watched.add(key)

        def wait() -> None:
            process.wait()
            self.advance()

        threading.Thread(target=wait, daemon=True).start()

    def _alone(self) -> Any:
        """While it is held, no other thread and no other app changes what runs."""
        return FileLock(self.folder / ".lock", timeout=30)


def _made(folder: Path) -> float:
    made = Run(folder).state.get("made")
    return float(made) if isinstance(made, (int, float)) else 0.0
