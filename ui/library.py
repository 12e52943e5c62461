"""The adapter files in the library folder: which can be used, and why the others are refused."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors

from diffusion_adapters import AdapterInfo
from diffusion_adapters.file import FORMAT
from diffusion_adapters.safe import check_safetensors

ERRORS = (ValueError, TypeError, KeyError, RuntimeError, OSError)
"""What the library raises for files and values that it refuses."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file. `info` is None if it is refused, and then `reason` says why."""

    name: str
    path: Path
    stamp: tuple[int, int]
    info: AdapterInfo | None = None
    reason: str = ""

    @property
    def trigger(self) -> str:
        """The prompt it was trained on, or nothing."""
        return (self.info.trigger or "") if self.info else ""

    @property
    def base(self) -> str:
        """What it was trained on: the denoiser's class and, where it has one, the base's name."""
        bases = self.info.base if self.info else {}
        names = {part: Path(base["name"] or "").name for part, base in bases.items()}
        return ", ".join(f"{base['class']} {'' if names[p] == p else names[p]}".strip() for p, base in bases.items())

    def describe(self) -> dict[str, Any]:
        """Plain values, for a client of the app."""
        family = self.info.family if self.info else None
        own = {"name": self.name, "family": family, "trigger": self.trigger, "base": self.base}
        return {**own, "refused": self.reason or None}


class Library:
    """Finds adapter files. A file is examined once, and again when it has changed."""

    def __init__(self, places: Sequence[Path], examine: Callable[[Entry], AdapterInfo]) -> None:
        """`places`: files and folders; if empty, where training leaves its files under the current folder."""
        for place in places:
            if not place.exists():
                raise FileNotFoundError(f"--adapters {place}: no such file or folder")
        self.places = places
        self.examine = examine
        self.entries: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def scan(self) -> list[Entry]:
        """All files by name, after a look at what is new."""
        with self._lock:
            known = {entry.path: entry for entry in self.entries.values()}
            entries: dict[str, Entry] = {}
            for path, name in self._files():
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                old = known.get(path)
                name = _free(old.name if old else name, entries)
                if old is None or old.stamp != stamp or old.name != name:
                    old = self._examined(Entry(name, path, stamp))
                entries[name] = old
            self.entries = dict(sorted(entries.items()))
            return list(self.entries.values())

    def newest(self) -> Entry | None:
        """The usable file that was written last."""
        usable = (entry for entry in self.entries.values() if entry.info)
        return max(usable, key=lambda entry: entry.stamp, default=None)

    def triggers(self) -> set[str]:
        """Every trigger prompt in the library."""
        return {entry.trigger for entry in self.entries.values() if entry.trigger}

    def find(self, name: str) -> Entry:
        """The file called `name`. Raises ValueError, with the reason, if it cannot be used."""
        entry = self.entries.get(name)
        if entry is None:
            known = ", ".join(name for name, entry in self.entries.items() if entry.info) or "none"
            raise ValueError(f"no adapter {name!r} in the library; it has: {known}")
        if entry.info is None:
            raise ValueError(f"{name} is refused: {entry.reason}")
        return entry

    def plain(self, error: BaseException) -> str:
        """What an error says, without the server's folders."""
        return _plain(error, self.entries.values())

    def _examined(self, entry: Entry) -> Entry:
        try:
            return dataclasses.replace(entry, info=self.examine(entry))
        except ERRORS as error:
            return dataclasses.replace(entry, reason=_plain(error, [entry]))

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Path and wanted name of each file: what was given, and in folders what is ours or damaged."""
        places = [(place, place) for place in self.places]
        if not places:
            here = Path()
            places = [(Path("runs"), Path("runs")), *((place, here) for place in sorted(here.glob("dreambooth-*")))]
        seen = set()
        for place, root in places:
            found = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
            for path in found:
                if path.is_file() and path.resolve() not in seen and (path == place or not is_foreign(path)):
                    seen.add(path.resolve())
                    yield path, _name(path, root)


def is_foreign(path: Path) -> bool:
    """Whether a sound safetensors file is none of ours: a part of a model, another program's adapter."""
    try:
        check_safetensors(path)
        with safetensors.safe_open(path, "pt") as file:
            return FORMAT not in (file.metadata() or {})
    except (*ERRORS, safetensors.SafetensorError):
        return False


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


def _free(name: str, taken: dict[str, Entry]) -> str:
    number, wanted = 2, name
    while name in taken:
        name, number = f"{wanted} ({number})", number + 1
    return name
