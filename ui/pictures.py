"""The pictures that a run trains on, with their captions and masks: files in a folder, as the trainer wants them."""

from __future__ import annotations

import functools
import re
import shutil
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from train import output
from train.data.sources import masked_stem
from train.images import open_picture, open_rgb

MAX_BYTES = 20 * 2**20
"""Of one picture."""
MAX_TOTAL = 2**30
"""Of all pictures of a run."""
MAX_PICTURES = 200
MAX_CAPTION = 2000
"""Characters."""
LEAST = 64
"""Pixels of the shorter side for which a picture is decoded to see whether it can be."""
SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
THUMBNAIL = 256


@dataclass(frozen=True)
class Picture:
    """One file. `caption` is empty where it has none of its own."""

    path: Path
    caption: str = ""
    masked: bool = False

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name


class Pictures:
    """The folder `path`. No two pictures have one stem, which their caption and their mask are named by."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def list(self) -> list[Picture]:
        """All of them by name."""
        found = []
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else []:
            if path.suffix in SUFFIXES and path.is_file() and not path.name.startswith(".") and not masked_stem(path):
                found.append(Picture(path, self._caption(path), self._mask(path).is_file()))
        return found

    def find(self, name: str) -> Picture:
        """By file name. Raises ValueError."""
        for picture in self.list():
            if picture.name == name:
                return picture
        raise ValueError(f"there is no picture {name!r} in this run")

    def add(self, files: Iterable[Path]) -> dict[str, str]:
        """Copy files in: pictures, and NAME.txt and NAME.mask.png of one. Returns the refused names with the reasons.

        Pictures are examined as the trainer does. A name that is taken gets a number.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        refused: dict[str, str] = {}
        stems: dict[str, Path] = {}  # as they were given -> as they are here
        files = [Path(file) for file in files]
        companions = [file for file in files if file.suffix.lower() == ".txt" or masked_stem(file)]
        for file in [*(file for file in files if file not in companions), *companions]:
            try:
                if file in companions:
                    self._add_companion(file, stems)
                else:
                    stems[file.stem] = self._add_picture(file)
            except (ValueError, OSError) as error:
                refused[file.name] = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        return refused

    def _add_picture(self, file: Path) -> Path:
        present = self.list()
        suffix = file.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"pictures end in {', '.join(sorted(SUFFIXES))}")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file.stat().st_size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} MiB are taken")
        if len(present) >= MAX_PICTURES:
            raise ValueError(f"the run has {MAX_PICTURES} pictures, and no more are taken")
        if sum(one.path.stat().st_size for one in present) + file.stat().st_size > MAX_TOTAL:
            raise ValueError(f"all pictures of a run together may have {MAX_TOTAL // 2**20} MiB")
        open_picture(file, LEAST)
        stem = _free(clean_stem(file.stem), {one.path.stem for one in present})
        place = self.path / f"{stem}{suffix}"
        return output.write(place, lambda part: shutil.copyfile(file, part))

    def _add_companion(self, file: Path, stems: Mapping[str, Path]) -> None:
        stem = masked_stem(file) or file.stem
        known = {one.path.stem: one.path for one in self.list()}
        owner = stems.get(stem) or known.get(clean_stem(stem))
        if owner is None:
            raise ValueError(f"there is no picture {stem} that it could belong to")
        if masked_stem(file):
            if file.stat().st_size > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES // 2**20} MiB")
            self.set_mask(owner.name, open_picture(file, LEAST, paper="black").image.convert("L"))
            return
        if file.stat().st_size > 4 * MAX_CAPTION:
            raise ValueError(f"a caption has at most {MAX_CAPTION} characters")
        try:
            self.set_caption(owner.name, file.read_text("utf-8-sig"))
        except UnicodeDecodeError:
            raise ValueError("not UTF-8 text") from None

    def set_caption(self, name: str, text: str) -> None:
        """Of the picture `name`; none if empty. Raises ValueError."""
        picture, text = self.find(name), " ".join(text.split())
        if len(text) > MAX_CAPTION:
            raise ValueError(f"a caption has at most {MAX_CAPTION} characters, this one {len(text)}")
        place = picture.path.with_suffix(".txt")
        if not text:
            place.unlink(missing_ok=True)
        else:
            output.write(place, lambda part: part.write_text(text, "utf-8"))

    def set_mask(self, name: str, mask: Image.Image | None) -> None:
        """White where the loss of the picture `name` counts, of any size; None takes it away. Raises ValueError."""
        picture = self.find(name)
        place = self._mask(picture.path)
        if mask is None:
            place.unlink(missing_ok=True)
            return
        if not mask.getbbox():
            raise ValueError(f"the mask of {name} is empty: paint where the subject is")
        full = mask.convert("L").resize(open_picture(picture.path, LEAST).size)
        output.write(place, lambda part: full.save(part, "PNG"))

    def mask(self, name: str) -> Image.Image | None:
        """The mask of the picture `name`, if it has one."""
        place = self._mask(self.find(name).path)
        return open_rgb(place, LEAST).convert("L") if place.is_file() else None

    def remove(self, name: str) -> None:
        """The picture with its caption and its mask."""
        path = self.find(name).path
        for place in (self._mask(path), path.with_suffix(".txt"), path):
            place.unlink(missing_ok=True)

    @staticmethod
    def _mask(path: Path) -> Path:
        return path.with_name(f"{path.stem}.mask.png")

    @staticmethod
    def _caption(path: Path) -> str:
        try:
            return path.with_suffix(".txt").read_text("utf-8-sig").strip()
        except (OSError, UnicodeDecodeError):
            return ""


def clean_stem(text: str) -> str:
    """A stem of letters, digits, hyphens and underscores that no program could mistake for anything else."""
    plain = unicodedata.normalize("NFKC", text)
    return re.sub(r"[^\w-]+", "-", plain).strip("-_")[:60] or "picture"


def thumbnail(path: Path) -> Image.Image:
    """A small copy."""
    return _thumbnail(path, path.stat().st_mtime_ns)


@functools.lru_cache(512)
def _thumbnail(path: Path, stamp: int) -> Image.Image:
    image = open_rgb(path, THUMBNAIL)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _free(stem: str, taken: Collection[str]) -> str:
    number, wanted = 2, stem
    while stem in taken:
        stem, number = f"{wanted}-{number}", number + 1
    return stem
