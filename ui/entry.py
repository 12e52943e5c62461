"""One adapter file of the library: what the doctor says of it, and the notes and the picture that lie beside it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from diffusion_adapters import FAMILIES, AdapterReport, inspect_adapter
from diffusion_adapters.file import FORMAT
from diffusion_adapters.safe import read_metadata

ERRORS = (ValueError, TypeError, KeyError, RuntimeError, OSError)
"""What the library raises for files and values that it refuses."""
NOTES = ".json"
PICTURES = (".preview.png", ".preview.jpg", ".preview.webp", ".png", ".jpg", ".webp")
"""Endings, after the stem of the file, of what lies beside it; other programs use the same."""
TRIGGER = "activation text"
"""The key in the notes under which other programs keep the trigger words as well."""
MAX_NOTES = 2**20
MAX_THUMBNAIL = 256 * 2**10
MAX_PICTURE = 32 * 2**20
SIDE = 256
"""Pixels of the longer side of a thumbnail."""
LONGEST = 8192
"""Pixels of the longest side of a picture that is taken in."""
THUMBNAIL = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/=]+")


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
        """The prompt that it answers to: what its notes say, else what it was trained on, or nothing."""
        own = self.notes.get(TRIGGER)
        return own if isinstance(own, str) and own else (self.report.trigger or "") if self.report else ""

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
        """The domains of a hybrid, each of which has a dial."""
        ours = self.report is not None and self.report.dialect == FORMAT
        for family in self.report.families if self.report and ours else ():
            with contextlib.suppress(ValueError, TypeError):  # the options are of another of its families
                return FAMILIES[family].Config.from_mapping(self.report.options).domains
        return ()

    @property
    def step(self) -> int | None:
        """The step of a checkpoint of a run; None for any other file."""
        found = re.fullmatch(r"checkpoint-(\d+)", self.path.parent.name)
        return int(found[1]) if found else None

    @property
    def notes(self) -> dict[str, Any]:
        """What the JSON file beside it says; nothing if there is none that can be read."""
        path = beside(self.path, NOTES)
        return _notes(path, stamp_of(path)) if path.is_file() else {}

    @property
    def thumbnail(self) -> str:
        """A small picture as a data URI: the one beside the file, else that in its header, or nothing."""
        for suffix in PICTURES:
            path = beside(self.path, suffix)
            if path.is_file() and (found := _thumbnail(path, stamp_of(path))):
                return found
        return self._own_thumbnail

    @functools.cached_property
    def _own_thumbnail(self) -> str:
        found = read_metadata(self.path).get("modelspec.thumbnail", "") if self.report else ""
        return found if len(found) <= MAX_THUMBNAIL and THUMBNAIL.fullmatch(found) else ""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return digest(self.path)

    def describe(self) -> dict[str, Any]:
        """Plain values, for a client of the app."""
        own = {"name": self.name, "family": self.family or None, "trigger": self.trigger, "base": self.base}
        return {**own, "domains": list(self.domains), "refused": self.reason or None}

    def details(self) -> AdapterReport | None:
        """The doctor's report without folders, of a refused file what can be said without a base; None if nothing."""
        try:
            report = self.report or inspect_adapter(self.path)
        except ERRORS:
            return None
        return dataclasses.replace(report, path=Path(self.path.name))


def beside(path: Path, suffix: str) -> Path:
    """What lies beside an adapter file, by its ending."""
    return path.with_name(path.stem + suffix)


def stamp_of(path: Path) -> tuple[int, int]:
    """Time and size of a file: another stamp, another file."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_picture(path: Path) -> Image.Image:
    """A picture that nobody vouches for, upright, in RGB. Raises ValueError with what is wrong."""
    try:
        if path.stat().st_size > MAX_PICTURE:
            raise ValueError(f"it has more than {MAX_PICTURE // 2**20} MiB")
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            if max(image.size) > LONGEST:
                raise ValueError(f"{image.width} × {image.height} pixels; no side may exceed {LONGEST}")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} is no picture that can be read: {_line(error, path)}") from None


def small_jpeg(image: Image.Image, side: int = SIDE) -> bytes:
    """A picture of at most `side` pixels, as JPEG."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as a page shows it without asking for a file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


@functools.lru_cache(1024)
def _thumbnail(path: Path, stamp: tuple[int, int]) -> str:
    try:
        return data_uri(small_jpeg(open_picture(path)))
    except ValueError:
        return ""


@functools.lru_cache(1024)
def _notes(path: Path, stamp: tuple[int, int]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if stamp[1] <= MAX_NOTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _line(error: BaseException, path: Path) -> str:
    return " ".join(str(error).replace(str(path), path.name).split())
