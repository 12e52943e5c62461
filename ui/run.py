"""One training of the app: a folder with its pictures, its settings, its log and what it made."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from train import checkpoint, output
from ui.outcome import Outcome, outcome
from ui.pictures import Pictures
from ui.process import Process

STATE, SETTINGS, LOG, DATA = "run.json", "run.toml", "log.txt", "data"
MAX_RUNS = 500


class Run:
    """A folder of `Runs`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.pictures = Pictures(folder / DATA)
        self.settings, self.log = folder / SETTINGS, folder / LOG
        self.result = folder / "adapter.safetensors"

    @property
    def state(self) -> dict[str, Any]:
        """What is kept of its process: `pid`, `started`, `launched`, `ended`, `queued`, `asked`, `total`, …"""
        try:
            found = json.loads((self.folder / STATE).read_text("utf-8"))
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    def note(self, **changes: Any) -> None:
        """Change what is kept."""
        kept = {**self.state, **changes}
        output.write(self.folder / STATE, lambda part: part.write_text(json.dumps(kept), "utf-8"))

    @property
    def process(self) -> Process | None:
        """That of its last start, alive or not."""
        state = self.state
        try:
            return Process(int(state["pid"]), float(state["started"]))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def trained(self) -> bool:
        """Whether it has anything to go on from, or to show."""
        return self.result.exists() or self.resumable

    @property
    def resumable(self) -> bool:
        """Whether it has anything to go on from."""
        return bool(checkpoint.steps(self.folder))

    def outcome(self) -> Outcome:
        """How far it is, and how it ended."""
        state = self.state
        if state.get("ended") and not state.get("queued"):
            return _ended(self.folder, (self.folder / STATE).stat().st_mtime_ns)
        return outcome(self.folder, self.log, state, self.process)


@functools.lru_cache(2 * MAX_RUNS)
def _ended(folder: Path, stamp: int) -> Outcome:
    """Of a run that nothing will change any more: its files are read once."""
    run = Run(folder)
    return outcome(folder, run.log, run.state, run.process)
