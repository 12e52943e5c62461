"""The numbers of every step in `records.jsonl`, a line each, for whoever looks at a run from outside."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from train import output

LOG = logging.getLogger("train")
FILE = "records.jsonl"


class Journal:
    """Appends to the file of a run. One that cannot be written is left behind with a warning: the training goes on."""

    def __init__(self, folder: Path, history: Sequence[Mapping[str, float]] = ()) -> None:
        """Begin the file, with the steps of a run that goes on: later ones of before are dropped."""
        self.path: Path | None = folder / FILE
        text = "".join(map(_line, history))
        self._try(lambda path: output.write(path, lambda part: part.write_text(text, "utf-8")))

    def add(self, record: Mapping[str, float]) -> None:
        """One step, with the seconds since 1970 as its `time`; a reader sees the whole line or, yet, none."""
        self._try(lambda path: _append(path, _line({**record, "time": time.time()})))

    def _try(self, act: Callable[[Path], object]) -> None:
        try:
            if self.path is not None:
                act(self.path)
        except OSError as error:
            LOG.warning(f"{FILE} is left behind, the training goes on: {error.strerror or error}")
            self.path = None


def read(folder: Path) -> list[dict[str, float]]:
    """The steps of a run so far; none if there is no such file. A line that is not whole ends them."""
    found: list[dict[str, float]] = []
    try:
        lines = (folder / FILE).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        try:
            record = json.loads(line)
            found.append({str(name): float(value) for name, value in record.items()})
        except (ValueError, TypeError, AttributeError):
            break
    return found


def _line(record: Mapping[str, float]) -> str:
    return json.dumps(dict(record)) + "\n"


def _append(path: Path, line: str) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())
