"""Results of a long measurement, one JSON file a cell: finished ones are never lost, broken ones are measured again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.output import write

LOG = logging.getLogger("train")
Result = dict[str, Any]


class Cells:
    """The cells of one measurement in a folder, by key; keys are file names."""

    def __init__(self, folder: Path, settings: Result) -> None:
        """Raises ValueError if the folder holds cells that were measured with other `settings`."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        known = self.get("settings")
        if known is None:
            self.put("settings", settings)
        elif known != json.loads(json.dumps(settings)):
            name = next(n for n in {**known, **settings} if known.get(n) != json.loads(json.dumps(settings.get(n))))
            raise ValueError(
                f"{folder} holds cells measured with {name} = {known.get(name)!r}, not {settings.get(name)!r}; "
                "give another --work_dir"
            )

    def path(self, key: str) -> Path:
        """Where the result of a cell lies."""
        return self.folder / f"{key}.json"

    def get(self, key: str) -> Result | None:
        """The result of a finished cell; None for one to be measured. A damaged file is put aside with a word."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_text("utf-8"))
            if not isinstance(value, dict):
                raise ValueError(f"a JSON {type(value).__name__} instead of an object")
            return value
        except ValueError as error:
            aside = path.with_suffix(".broken")
            path.replace(aside)
            LOG.warning(f"{path} is damaged ({error}); kept as {aside.name}, and the cell is measured again")
            return None

    def put(self, key: str, result: Result) -> None:
        """Write a result, whole or not at all."""
        text = json.dumps(result)
        write(self.path(key), lambda path: path.write_text(text, "utf-8"))

    def fill(self, key: str, measure: Callable[[], Result]) -> Result:
        """The result of a cell, measured now unless it is there."""
        found = self.get(key)
        if found is None:
            found = measure()
            self.put(key, found)
        return found
