"""Pictures and captions from a data set of the `datasets` library, most of all one on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.data.captions import clean
from train.data.options import DataOptions
from train.data.sources import Content, Listing, Source, caption_column, check_column

SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")


def list_dataset(options: DataOptions) -> Listing:
    """The rows of `--dataset_name`; pictures stay encoded. Raises ValueError for a missing package, split or column."""
    flag = f"--dataset_name {options.dataset_name}"
    rows = _split(_load(options, flag), flag)
    check_column("image_column", options.image_column, rows.column_names, flag)
    column = caption_column(options, rows.column_names, flag)
    pictures = _encoded(rows, options.image_column, flag)
    masks = None
    if options.masked_loss and options.mask_column in rows.column_names:
        masks = _encoded(rows, options.mask_column, flag)
    listing = Listing(flag, Path(options.dataset_name or ""), masks=len(rows) if masks is not None else 0)
    captions = rows[column] if column else [None] * len(rows)
    for number, caption in enumerate(captions):
        if caption is not None and not isinstance(caption, str):
            raise ValueError(f"{flag}, row {number}: {column} must be text, got {caption!r}")
        text = clean(caption or "", options, f"{flag}, row {number}") or None
        own = _content(pictures, options.image_column, number)
        mask = None if masks is None else _content(masks, options.mask_column, number)
        listing.sources.append(Source(f"row {number}", own, text, mask, options.repeats))
    if not listing.sources:
        raise ValueError(f"{flag}: the data set has no rows")
    return listing


def _load(options: DataOptions, flag: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{flag} needs the package datasets: pip install datasets") from None
    path = Path(options.dataset_name or "").expanduser()
    if path.is_file():
        raise ValueError(f"{flag} is a file; give the folder of a data set")
    datasets.disable_progress_bars()
    try:
        if any((path / name).is_file() for name in SAVED):
            return datasets.load_from_disk(str(path))
        source = str(path) if path.is_dir() else options.dataset_name
        return datasets.load_dataset(source, options.dataset_config_name)
    except Exception as error:  # the library raises a dozen kinds of its own
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{flag}: cannot be loaded: {said}") from None


def _split(loaded: Any, flag: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if "train" not in loaded and len(loaded) != 1:
        raise ValueError(f"{flag}: no split is called train; it has {', '.join(loaded)}")
    return loaded["train"] if "train" in loaded else next(iter(loaded.values()))


def _encoded(rows: Any, column: str, flag: str) -> Any:
    import datasets

    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:
        kind, said = rows.features[column], " ".join(str(error).split())[:200]
        raise ValueError(f"{flag}: column {column} holds no pictures but {kind}: {said}") from None


def _content(rows: Any, column: str, number: int) -> Content:
    def content() -> Path | bytes:
        cell = rows[number][column]
        if cell is None:
            raise ValueError("the row has no picture")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])

    return content
