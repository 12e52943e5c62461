"""The adapter files that the app finds: which can be used, which make up a run, and why others are refused."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_adapters import inspect_adapter
from diffusion_adapters.file import FORMAT
from diffusion_adapters.safe import check_safetensors, read_metadata
from ui.entry import ERRORS, Entry, stamp_of
from ui.home import Home

if TYPE_CHECKING:
    from ui.bases import Base

__all__ = ["ERRORS", "Entry", "Home", "Library", "hide_folders"]

PLAIN = "pytorch_lora_weights.safetensors"
"""What a run leaves beside its adapter, the same once more for stock diffusers."""


class Library:
    """Finds adapter files. A file is examined once for each base, and again when it has changed."""

    def __init__(self, places: Sequence[Path], home: Path | None = None) -> None:
        """`places`: files and folders; if empty, where training leaves its files under the current folder.

        `home`: the library's own folder, the only one that is written to; without it nothing is.
        """
        for place in places:
            if not place.exists():
                raise FileNotFoundError(f"--adapters {place}: no such file or folder")
        self.places = places
        self.own = None if home is None else Home(home)
        self.names: dict[Path, str] = {}
        self.entries: dict[Any, dict[str, Entry]] = {}
        self._lock = threading.Lock()

    def scan(self, base: Base) -> list[Entry]:
        """All files by name, as they are for a base, after a look at what is new."""
        with self._lock:
            known = {entry.path: entry for entry in self.entries.get(base.name, {}).values()}
            entries: dict[str, Entry] = {}
            found = dict(self._files())
            self.names = {path: name for path, name in self.names.items() if path in found}
            for path, (wanted, stamp) in found.items():
                name = self.names.get(path) or _free(wanted, self.names.values())
                self.names[path] = name
                old = known.get(path)
                if old is None or old.stamp != stamp:
                    old = _examined(Entry(name, path, stamp), base)
                entries[name] = old
            self.entries[base.name] = dict(sorted(entries.items()))
            return list(self.entries[base.name].values())

    def usable(self, base: Base) -> dict[str, Entry]:
        """What the last look found to fit a base, by name."""
        return {name: entry for name, entry in self.entries.get(base.name, {}).items() if entry.report}

    def newest(self, base: Base) -> Entry | None:
        """The usable file that was written last."""
        return max(self.usable(base).values(), key=lambda entry: entry.stamp, default=None)

    @property
    def home(self) -> Home:
        """The library's own folder. Raises ValueError if the app was opened without one."""
        if self.own is None:
            raise ValueError("this app was opened without a folder of its own to keep adapters in; give --library")
        return self.own

    @property
    def trainings(self) -> Path:
        """The folder of the runs: its own, else the first of those that it searches."""
        return self.own.folder if self.own else next((place for place in self.places if place.is_dir()), Path("runs"))

    def runs(self, base: Base) -> dict[str, dict[str, Entry]]:
        """The usable checkpoints of each training run by step, in ascending order, and what it ended with."""
        usable = list(self.usable(base).values())
        steps = [(entry.path.parent.parent, entry.step, entry) for entry in usable if entry.step is not None]
        found: dict[Path, dict[str, Entry]] = {}
        for folder, step, entry in sorted(steps, key=lambda row: row[:2]):
            found.setdefault(folder, {})[str(step)] = entry
        for entry in usable:
            if entry.step is None and entry.path.parent in found:
                found[entry.path.parent]["end"] = entry
        named = {_run(next(iter(own.values()))): own for own in found.values()}
        return dict(sorted(named.items()))

    def known(self, name: str, base: Base) -> Entry:
        """The file called `name`, usable or not, after a look at what is new. Raises ValueError."""
        found = next((entry for entry in self.scan(base) if entry.name == name), None)
        if found is None:
            raise ValueError(f"no adapter {name!r} in the library")
        return found

    def triggers(self) -> set[str]:
        """Every trigger prompt in the library."""
        return {entry.trigger for entries in self.entries.values() for entry in entries.values() if entry.trigger}

    def find(self, name: str, base: Base) -> Entry:
        """The file called `name`. Raises ValueError, with the reason, if it cannot be used with a base."""
        entry = self.entries.get(base.name, {}).get(name)
        if entry is None:
            known = ", ".join(self.usable(base)) or "none"
            raise ValueError(f"no adapter {name!r} in the library; it has: {known}")
        if entry.report is None:
            raise ValueError(f"{name} is refused: {entry.reason}")
        return entry

    def plain(self, error: BaseException) -> str:
        """What an error says, without the server's folders."""
        return _plain(error, [entry for entries in self.entries.values() for entry in entries.values()])

    def _files(self) -> Iterator[tuple[Path, tuple[str, tuple[int, int]]]]:
        """Path, wanted name and stamp of each file: what was given, and in folders what is ours or damaged."""
        places = [(place, place) for place in self.places]
        if not places:
            here = Path()
            places = [(Path("runs"), Path("runs")), *((place, here) for place in sorted(here.glob("dreambooth-*")))]
        if self.own is not None:
            places.insert(0, (self.own.folder, self.own.folder))
        seen = set()
        for place, root in places:
            found = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
            for path in found:
                hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
                twin = path.name == PLAIN and path.with_name("adapter.safetensors") in found
                if hidden or twin or not path.is_file() or path.resolve() in seen:
                    continue
                try:
                    stamp = stamp_of(path)
                except FileNotFoundError:  # somebody has taken it away since
                    continue
                if path == place or not is_foreign(path, stamp):
                    seen.add(path.resolve())
                    yield path, (_name(path, root), stamp)


@functools.lru_cache(4096)
def is_foreign(path: Path, stamp: tuple[int, int]) -> bool:
    """Whether a sound safetensors file holds no adapter: it is a part of a model, say."""
    try:
        check_safetensors(path)
        return FORMAT not in read_metadata(path) and set(inspect_adapter(path).families) <= {"unknown"}
    except ValueError as error:
        return "no adapter file of a known kind" in str(error)
    except ERRORS:
        return False


def _examined(entry: Entry, base: Base) -> Entry:
    try:
        report = inspect_adapter(entry.path, base.skeleton)
        if not report.fits:
            raise ValueError(report.verdict)
        return dataclasses.replace(entry, report=report)
    except ERRORS as error:
        return dataclasses.replace(entry, reason=_plain(error, [entry]))


def _plain(error: BaseException, entries: Iterable[Entry]) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    for entry in entries:
        text = text.replace(str(entry.path), entry.path.name)
    return hide_folders(text)


def hide_folders(text: str) -> str:
    """`text` with every absolute path cut to its last part."""
    return re.sub(r"(?<![\w./\\])(?:[A-Za-z]:[\\/]|/)(?:[^\s'\":;,]+[\\/])+(?=[^\s'\":;,/\\]+)", "", text)


def _name(path: Path, root: Path) -> str:
    """A short name: folders below `root` and stem; training calls its file `adapter` in a folder of its own."""
    below = path.relative_to(root) if path != root else Path(path.name)
    parts = [*below.parent.parts, below.stem]
    if below.stem == "adapter":
        parts = parts[:-1] or [path.resolve().parent.name]
    return " ".join(parts).replace(".", "_") or below.stem


def _run(checkpoint: Entry) -> str:
    """The name of the run that a checkpoint is of."""
    last = checkpoint.path.parent
    return checkpoint.name.removesuffix(last.name).strip() or last.resolve().parent.name


def _free(name: str, taken: Collection[str]) -> str:
    number, wanted = 2, name
    while name in taken:
        name, number = f"{wanted} ({number})", number + 1
    return name
