"""The adapter files in the library folder: which can be used, and why the others are refused."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_adapters import AdapterReport, inspect_adapter
from diffusion_adapters.file import FORMAT
from diffusion_adapters.safe import check_safetensors, read_metadata

if TYPE_CHECKING:
    from ui.bases import Base

MAX_THUMBNAIL = 256 * 2**10
THUMBNAIL = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/=]+")

ERRORS = (ValueError, TypeError, KeyError, RuntimeError, OSError)
"""What the library raises for files and values that it refuses."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One file, as it is for one base. `report` is None if it is refused, and then `reason` says why."""

    name: str
    path: Path
    stamp: tuple[int, int]
    report: AdapterReport | None = None
    reason: str = ""

    @property
    def trigger(self) -> str:
        """The prompt it was trained on, or nothing."""
        return (self.report.trigger or "") if self.report else ""

    @property
    def family(self) -> str:
        """Its family, or several."""
        return ", ".join(self.report.families) if self.report else ""

    @property
    def base(self) -> str:
        """What it was trained on, as far as the file tells."""
        return re.sub(r" \[\w+\]", "", self.report.base or "") if self.report else ""

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of a hybrid."""
        return tuple(getattr(self.report, "domains", None) or ())

    @functools.cached_property
    def thumbnail(self) -> str:
        """The picture in the file's header as a data URI, or nothing."""
        found = read_metadata(self.path).get("modelspec.thumbnail", "") if self.report else ""
        return found if len(found) <= MAX_THUMBNAIL and THUMBNAIL.fullmatch(found) else ""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def describe(self) -> dict[str, Any]:
        """Plain values, for a client of the app."""
        own = {"name": self.name, "family": self.family or None, "trigger": self.trigger, "base": self.base}
        return {**own, "domains": list(self.domains), "refused": self.reason or None}


class Library:
    """Finds adapter files. A file is examined once for each base, and again when it has changed."""

    def __init__(self, places: Sequence[Path]) -> None:
        """`places`: files and folders; if empty, where training leaves its files under the current folder."""
        for place in places:
            if not place.exists():
                raise FileNotFoundError(f"--adapters {place}: no such file or folder")
        self.places = places
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
            for path, wanted in found.items():
                stamp = _stamp(path)
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
                if (
                    path.is_file()
                    and path.resolve() not in seen
                    and (path == place or not is_foreign(path, _stamp(path)))
                ):
                    seen.add(path.resolve())
                    yield path, _name(path, root)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


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


def _free(name: str, taken: Collection[str]) -> str:
    number, wanted = 2, name
    while name in taken:
        name, number = f"{wanted} ({number})", number + 1
    return name
