"""A training as a process of its own, which outlives the app: found again by its id and the time of its start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "train" / "dreambooth.py"
CLOCK = 2.0
"""Seconds by which the start of a process may be told differently at two times."""
GRACE = 1.0
"""Seconds in which a process that was asked to end may still start the one that does the work."""
LAUNCHERS = ("accelerate.commands.launch", "torch.distributed.run", "torchrun")


@dataclass(frozen=True)
class Process:
    """The launcher, leader of a session in which all processes of the training are."""

    pid: int
    started: float

    @classmethod
    def launch(cls, arguments: Sequence[str], log: Path) -> Process:
        """`accelerate launch train/dreambooth.py` with `arguments`, whose words go to the end of `log`."""
        command = [sys.executable, "-m", LAUNCHERS[0], str(SCRIPT), *arguments]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as file:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        threading.Thread(target=child.wait, daemon=True).start()  # or it would stay as a zombie
        return cls(child.pid, _start_of(child.pid) or time.time())

    def members(self) -> list[psutil.Process]:
        """Its processes that live, the launcher first; none once all have ended."""
        began = _start_of(self.pid)
        if began is not None and abs(began - self.started) > CLOCK:
            return []  # another program has its number now
        found = []
        for pid in sorted(psutil.pids(), key=lambda pid: pid != self.pid):
            try:
                if os.getsid(pid) == self.pid and (own := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                    found.append(own)
            except (OSError, psutil.Error):
                continue
        return found

    @property
    def alive(self) -> bool:
        """Whether any of it runs."""
        return bool(self.members())

    def ask_to_stop(self) -> None:
        """Tell those that train, once each, to finish their step and save; or the launcher, if there are none yet."""
        told: set[int] = set()
        until = time.monotonic() + GRACE
        while True:
            members = self.members()
            workers = [process for process in members if _trains(process)]
            for process in workers or members[:1]:
                if process.pid not in told:
                    told.add(process.pid)
                    _signal(process, signal.SIGTERM)
            if workers or not members or time.monotonic() > until:
                return
            time.sleep(0.05)

    def kill(self) -> None:
        """End it now; what is not saved is lost."""
        for process in self.members():
            _signal(process, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> bool:
        """Until all of it has ended; False if it has not after `seconds`."""
        until = None if seconds is None else time.monotonic() + seconds
        while self.alive:
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(0.2)
        return True


def _start_of(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _trains(process: psutil.Process) -> bool:
    """Whether a process runs the script itself."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return str(SCRIPT) in words and not any(launcher in word for word in words for launcher in LAUNCHERS)


def _signal(process: psutil.Process, kind: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(kind)
