"""Where training pictures come from: a folder, its metadata.jsonl, or a data set; nothing is decoded here."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.data.captions import clean
from train.data.options import SAMPLE_SUBJECT, DataOptions

METADATA = "metadata.jsonl"
CAPTION_COLUMNS = ("text", "prompt", "caption")
REPEATED = re.compile(r"(\d+)_(.+)")
Content = Callable[[], Path | bytes]


@dataclass(frozen=True)
class Source:
    """A file that may be a picture. `caption` is None where it has none of its own."""

    name: str
    content: Content
    caption: str | None = None
    mask: Content | None = None
    repeats: int = 1


@dataclass
class Listing:
    """What a place holds, before anything is decoded. `flag`: how it was named on the command line."""

    flag: str
    path: Path
    sources: list[Source] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    masks: int = 0


def list_sources(options: DataOptions) -> Listing:
    """The files that may be pictures. Raises FileNotFoundError or ValueError, in one line, for anything wrong."""
    options.check()
    if options.dataset_name:
        from train.data.hub import list_dataset

        return list_dataset(options)
    path = options.instance_data_dir or SAMPLE_SUBJECT
    listing = Listing(f"--instance_data_dir {path}", path)
    check_folder(listing.flag, path)
    if (path / METADATA).is_file():
        listing.sources += _described(path, options, listing)
    else:
        if options.caption_column:
            raise ValueError(f"--caption_column {options.caption_column}: {listing.flag} has no {METADATA} to hold it")
        listing.sources += _files(path, options, listing)
        for folder in sorted(path.iterdir()):
            if folder.is_dir() and (match := REPEATED.fullmatch(folder.name)):
                listing.sources += _files(folder, options, listing, int(match[1]), match[2], f"{folder.name}/")
    if not listing.sources and not listing.refused:
        raise ValueError(f"{listing.flag}: the folder has no files (subfolders are searched if named as 10_NAME)")
    if options.masked_loss and options.mask_data_dir:
        _check_masks(options.mask_data_dir, listing)
    return listing


def check_folder(flag: str, path: Path) -> None:
    """Raise FileNotFoundError or ValueError unless `path` is a folder."""
    if not path.exists():
        raise FileNotFoundError(f"{flag}: no such folder")
    if not path.is_dir():
        raise ValueError(f"{flag} is a file; give the folder that holds the pictures")


def check_place(flag: str, path: Path) -> None:
    """Raise ValueError unless `path` is a folder, or can be made one."""
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not above.is_dir():
        raise ValueError(f"{flag}: {above} is a file; give the name of a folder")


def files_of(path: Path) -> list[Path]:
    """The files of a folder by name, without hidden ones."""
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))


def _files(
    path: Path, options: DataOptions, listing: Listing, repeats: int = 1, caption: str = "", prefix: str = ""
) -> Iterator[Source]:
    """The files of one folder; NAME.txt and NAME.mask.png belong to NAME.png. Unreadable captions are refused."""
    files = files_of(path)
    stems = {file.stem for file in files if file.suffix.lower() != ".txt"}
    masks = {stem: file for file in files if (stem := masked_stem(file)) in stems}
    for file in files:
        if (file.suffix.lower() == ".txt" and file.stem in stems) or file in masks.values():
            continue
        sidecar = file.with_suffix(".txt")
        try:
            text = sidecar.read_text("utf-8-sig") if sidecar.is_file() and sidecar != file else ""
        except UnicodeDecodeError:
            listing.refused[prefix + file.name] = f"its caption {sidecar.name} is not UTF-8 text"
            continue
        text = clean(text, options, str(sidecar)) or clean(caption, options, str(path))
        mask = _mask_of(file.name, masks.get(file.stem), options, listing)
        yield Source(prefix + file.name, lambda file=file: file, text or None, mask, repeats * options.repeats)


def masked_stem(file: Path) -> str | None:
    """NAME for NAME.mask.png."""
    return file.stem.removesuffix(".mask") if file.stem.endswith(".mask") else None


def _described(path: Path, options: DataOptions, listing: Listing) -> Iterator[Source]:
    """The pictures that metadata.jsonl lists; a file that it does not list is not used."""
    rows = list(read_metadata(path / METADATA))
    columns = dict.fromkeys(name for _, row in rows for name in row)
    column = caption_column(options, list(columns), str(path / METADATA))
    named: set[str | None] = {METADATA}
    for place, row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise ValueError(f'{place}: no file_name; a line is such as {{"file_name": "0.png", "text": "a cat"}}')
        if not (path / name).is_file():
            raise FileNotFoundError(f"{place}: file_name {name!r}: no such file in {path}")
        text = row.get(column) if column else None
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{place}: {column} must be text, got {text!r}")
        found = row.get(options.mask_column) if options.masked_loss else None
        if found is not None and not (isinstance(found, str) and (path / found).is_file()):
            raise FileNotFoundError(f"{place}: {options.mask_column} {found!r}: no such file in {path}")
        beside = next(iter(sorted((path / name).parent.glob(f"{glob.escape(Path(name).stem)}.mask.*"))), None)
        named |= {name, found, f"{Path(name).stem}.txt", beside and beside.name}
        mask = _mask_of(name, path / found if found else beside, options, listing)
        yield Source(
            name, lambda name=name: path / name, clean(text or "", options, place) or None, mask, options.repeats
        )
    for file in files_of(path):
        if file.name not in named:
            listing.refused[file.name] = f"not listed in {METADATA}"


def read_metadata(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each line of a JSON Lines file. Raises ValueError with the number of a bad line."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON, {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: must be an object of names and values, got {line.strip()[:40]}")
        yield place, row


def caption_column(options: DataOptions, columns: list[str], where: str) -> str | None:
    """The column with the captions; None if there is none. Raises ValueError for one that was named and is absent."""
    if options.caption_column is not None:
        check_column("caption_column", options.caption_column, columns, where)
    return options.caption_column or next((name for name in CAPTION_COLUMNS if name in columns), None)


def check_column(flag: str, name: str, columns: list[str], where: str) -> None:
    """Raise ValueError for a column that is not there."""
    if name not in columns:
        raise ValueError(f"--{flag} {name}: {where} has no such column; it has {', '.join(columns)}")


def _mask_of(name: str, beside: Path | None, options: DataOptions, listing: Listing) -> Content | None:
    """What holds the mask of a picture: the file named as it in `--mask_data_dir`, else the one beside it."""
    if not options.masked_loss:
        if beside is not None:
            listing.refused[beside.name] = f"the mask of {name}, which --masked_loss would use"
        return None
    folder = options.mask_data_dir
    inside = sorted(folder.glob(f"{glob.escape(Path(name).stem)}.*")) if folder and folder.is_dir() else []
    file = next(iter(inside), beside)
    listing.masks += file is not None
    return None if file is None else lambda: file


def _check_masks(folder: Path, listing: Listing) -> None:
    flag = f"--mask_data_dir {folder}"
    check_folder(flag, folder)
    if not listing.masks:
        raise ValueError(f"{flag}: no mask is named as a picture of {listing.path}, such as NAME.png for NAME.jpg")
    stems = {Path(source.name).stem for source in listing.sources}
    for file in files_of(folder):
        if file.stem not in stems:
            listing.refused[f"{folder.name}/{file.name}"] = "a mask of no picture"
