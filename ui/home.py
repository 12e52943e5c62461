"""The library's own folder, the only one that the app writes to: take in, rename, annotate, put away and bring back."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffusion_adapters import inspect_adapter
from diffusion_adapters.safe import check_safetensors
from ui.entry import MAX_NOTES, NOTES, PICTURES, Entry, beside, digest, open_picture, small_jpeg

DELETED = ".deleted"
"""The folder in the library's own that keeps what was deleted."""
ENDING = ".safetensors"
MAX_NAME = 120
"""Bytes of a name."""


class Home:
    """A folder, made when something is first put into it. Nothing in it is ever overwritten, nothing lost."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--library {folder}: it is a file; give a folder")
        self.folder = folder
        self._lock = threading.RLock()

    def holds(self, path: Path) -> bool:
        """Whether a file lies in it."""
        return path.resolve().is_relative_to(self.folder.resolve())

    def free(self, name: str) -> Path:
        """Where an adapter of this name may be written. Raises ValueError for no name, and for one that is taken."""
        name = safe_name(name)
        path = self.folder / f"{name}{ENDING}"
        if path.exists() or (self.folder / name / f"adapter{ENDING}").exists():
            raise ValueError(f"the library has an adapter {name!r}; give another name, or rename or delete that one")
        return path

    def take(self, file: Path, name: str = "") -> Path:
        """Copy an adapter file into the folder once it is known to be one. Raises ValueError, OSError.

        `name`: its file's own if empty, with a number if that is taken. It is examined as far as it can be without a
        base: safetensors with a sane header, of a family that this program reads.
        """
        if file.suffix.lower() != ENDING:
            raise ValueError(f"{file.name}: adapters are {ENDING} files, and no other kind is taken in")
        check_safetensors(file)
        families = set(inspect_adapter(file).families)
        if families <= {"unknown"}:
            raise ValueError(f"{file.name}: no adapter of a family that this program reads")
        with self._lock:
            for other in self.folder.glob(f"**/*{ENDING}"):
                same_size = DELETED not in other.parts and other.stat().st_size == file.stat().st_size
                if same_size and digest(other) == digest(file):
                    raise ValueError(f"{file.name} is in the library already, as {other.stem!r}")
            target = self._numbered(safe_name(name or file.stem))
            write(target, lambda part: shutil.copyfile(file, part))
        return target

    def rename(self, entry: Entry, name: str) -> Path:
        """Give a file and what lies beside it another name. Raises ValueError, OSError."""
        with self._lock:
            self._own(entry)
            target = self.free(name)
            for path in self._together(entry.path):
                path.rename(target.with_name(target.stem + path.name.removeprefix(entry.path.stem)))
        return target

    def annotate(self, entry: Entry, **changes: Any) -> None:
        """Change the notes beside a file; what else they hold stays. None takes an entry away."""
        with self._lock:
            self._own(entry)
            notes = {key: value for key, value in {**entry.notes, **changes}.items() if value is not None}
            if notes == entry.notes:
                return
            text = json.dumps(notes, indent=2, ensure_ascii=False) + "\n"
            if len(text.encode()) > MAX_NOTES:
                raise ValueError(f"notes of {len(text.encode())} bytes; at most {MAX_NOTES} are kept")
            write(beside(entry.path, NOTES), lambda part: part.write_text(text, encoding="utf-8"), replace=True)

    def picture(self, entry: Entry, picture: Path | None) -> None:
        """Make a picture the thumbnail of a file; None takes its own away. Raises ValueError."""
        jpeg = None if picture is None else small_jpeg(open_picture(picture))
        with self._lock:
            self._own(entry)
            for path in (beside(entry.path, suffix) for suffix in PICTURES):
                if path.is_file():
                    self._put_away([path], path.stem)
            if jpeg is not None:
                write(beside(entry.path, ".preview.jpg"), lambda part: part.write_bytes(jpeg))

    def delete(self, entry: Entry) -> str:
        """Put a file and what lies beside it away; the label under which `restore` brings it back."""
        with self._lock:
            self._own(entry)
            return self._put_away(self._together(entry.path), safe_name(entry.name))

    def deleted(self) -> list[str]:
        """Labels of the adapters that were put away, the last one first."""
        found = [path.parent.name for path in (self.folder / DELETED).glob(f"*/*{ENDING}")]
        return sorted(dict.fromkeys(found), reverse=True)

    def restore(self, label: str) -> Path:
        """Bring back what was put away. Raises ValueError for an unknown label, and if its name is taken now."""
        with self._lock:
            if label not in self.deleted():
                raise ValueError(f"nothing was deleted under {label!r}")
            folder = self.folder / DELETED / label
            file = next(folder.glob(f"*{ENDING}"))
            target = self.free(label.partition(" ")[2] or file.stem)
            for path in list(folder.iterdir()):
                path.rename(target.with_name(target.stem + path.name.removeprefix(file.stem)))
            folder.rmdir()
        return target

    def _own(self, entry: Entry) -> None:
        if not self.holds(entry.path):
            raise ValueError(f"{entry.name} lies outside the library's own folder; copy it into the library first")
        if not entry.path.exists():
            raise FileNotFoundError(f"no adapter file {entry.path.name} any more; look again")

    def _together(self, path: Path) -> list[Path]:
        """A file and what lies beside it."""
        return [path, *(own for suffix in (NOTES, *PICTURES) if (own := beside(path, suffix)).is_file())]

    def _put_away(self, paths: list[Path], name: str) -> str:
        now = datetime.now(UTC)
        folder = self.folder / DELETED / f"{now:%Y-%m-%dT%H-%M-%S.%f} {name}"
        folder.mkdir(parents=True)
        for path in paths:
            path.rename(folder / path.name)
        return folder.name

    def _numbered(self, name: str) -> Path:
        number, wanted = 2, name
        while True:
            try:
                return self.free(name)
            except ValueError:
                name, number = f"{wanted} ({number})", number + 1


def safe_name(text: str) -> str:
    """A name as a file may have it on any system: the last part of a path, without what has a meaning somewhere."""
    last = re.split(r"[/\\]", text.strip())[-1].removesuffix(ENDING)
    name = re.sub(r"[^\w ()+=-]+", "_", last).strip(" _") or ""
    name = name.encode()[:MAX_NAME].decode(errors="ignore").strip()
    if not name:
        raise ValueError(f"{text[:40]!r} is no name; give one of letters and digits")
    return name


def write(path: Path, fill: Any, replace: bool = False) -> None:
    """Have `fill` write a temporary file beside `path`, sync it, and give it that name. Raises OSError."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".part")
        part = Path(name)
        os.close(handle)
        fill(part)
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o644)
        if not replace and path.exists():
            raise FileExistsError(17, "it exists")
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path.name}: {error.strerror or error}") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
