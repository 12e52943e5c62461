"""The pictures that are trained on: checked, assigned to buckets, and cut when they are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from train.data.buckets import Size, buckets_for, nearest
from train.data.captions import clean
from train.data.masks import MaskError, check_mask, open_mask
from train.data.options import DataOptions
from train.data.sources import Listing, Source, list_sources
from train.images import View, open_picture, views

SHOWN = 5
"""Captions, and ten times as many files, that a report shows."""


class Cuts(Sequence[Image.Image]):
    """The views of one picture, or of its mask. Its file is opened when one is asked for: no pixels stay in memory."""

    def __init__(self, opened: Any, cut: Sequence[View], how: str) -> None:
        self.opened, self.views, self.how = opened, cut, how

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: Any) -> Any:
        return self.views[index].cut(self.opened(), self.how)

    def __iter__(self) -> Iterator[Image.Image]:
        opened = self.opened()
        return (view.cut(opened, self.how) for view in self.views)


@dataclass(frozen=True)
class Example:
    """One picture: its views, all of the size of its bucket, what it shows, and its own size (width, height)."""

    name: str
    images: Sequence[Image.Image]
    prompt: str
    size: Size
    bucket: Size = (0, 0)
    keys: Sequence[str] = ()
    micro: Sequence[tuple[int, ...]] = ()
    masks: Sequence[Image.Image] = ()
    repeats: int = 1
    captioned: bool = False
    domain: str = ""
    """What it is an example of, where that is not one and the same: the samples of a step share it."""

    def __post_init__(self) -> None:
        if self.keys:
            return
        images = list(self.images)
        bucket = images[0].size
        derived = {"bucket": bucket, "keys": tuple(content(image) for image in images)}
        derived |= {"micro": tuple(View(bucket).micro(self.size) for _ in images)}
        for name, value in derived.items():
            object.__setattr__(self, name, value)


@dataclass
class Folder:
    """What a place holds: pictures to train on, and files that are not used, each with the reason."""

    path: Path
    resolution: int
    examples: list[Example] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Samples of an epoch: each picture as often as it is repeated."""
        return sum(example.repeats for example in self.examples)

    @property
    def buckets(self) -> Counter[Size]:
        """Size (width, height) -> pictures that are cut to it."""
        return Counter(example.bucket for example in self.examples)

    def report(self) -> Iterator[str]:
        """Lines that say what is used and what is not."""
        examples, buckets = self.examples, self.buckets
        own = [example for example in examples if example.captioned]
        one = next(iter(buckets)) if len(buckets) == 1 else None
        shape = f"at {one[0]} x {one[1]} pixels" if one else f"in {len(buckets)} sizes"
        said = f", {len(own)} with a caption of their own" if own else ""
        yield f"{_count(len(examples), 'picture')} {shape}{said}"
        small = [e for e in examples if any(a < b for a, b in zip(e.size, e.bucket, strict=True))]
        yield from _first(f"enlarged {e.name}: {e.size[0]} x {e.size[1]}" for e in small)
        yield from _first(f"not used {name}: {reason}" for name, reason in self.refused.items())
        if len(buckets) > 1:
            for (width, height), count in sorted(buckets.items()):
                yield f"  {width} x {height}: {_count(count, 'picture')}"
        captions = Counter(example.prompt for example in examples)
        if own:
            missing = len(examples) - len(own)
            said = f"; {_count(missing, 'picture')} without, trained with the instance prompt" if missing else ""
            yield f"  {_count(len(captions), 'different caption')}{said}"
            yield from _first((f"  {text} (x {count})" for text, count in captions.most_common()), SHOWN)
        if len(self) > len(examples):
            repeats = Counter(example.repeats for example in examples)
            yield "  repeated: " + ", ".join(
                f"{_count(n, 'picture')} x {times}" for times, n in sorted(repeats.items())
            )
        if any(example.masks for example in examples):
            masked = sum(bool(example.masks) for example in examples)
            yield f"  {_count(masked, 'mask')}, {_count(len(examples) - masked, 'picture')} without one"


def read_folder(options: DataOptions, resolution: int, seed: int, multiple: int = 1) -> Folder:
    """Check every picture of the data. Raises ValueError if none is one, and for masks that do not fit."""
    buckets = buckets_for(options, resolution, multiple)
    listing = list_sources(options)
    folder = Folder(listing.path, resolution, refused=dict(listing.refused))
    prompt = clean(options.instance_prompt, options, "--instance_prompt")
    read_into(folder, listing, buckets, options, seed, prompt)
    if options.masked_loss and not any(example.masks for example in folder.examples):
        raise ValueError(
            f"--masked_loss: no picture of {listing.flag} has a mask; add NAME.mask.png beside NAME.png, "
            "give --mask_data_dir, or use pictures with transparency"
        )
    return folder


def read_into(
    folder: Folder,
    listing: Listing,
    buckets: Sequence[Size],
    options: DataOptions,
    seed: int,
    prompt: str,
    empty: bool = False,
) -> None:
    """Open every source once: it becomes an example or is refused. Raises ValueError if all are, unless it may be."""
    for source in listing.sources:
        try:
            example = _example(source, buckets, options, seed)
        except MaskError:
            raise
        except (ValueError, OSError) as error:
            folder.refused[source.name] = str(error)
            continue
        folder.examples.append(example if example.captioned else dataclasses.replace(example, prompt=prompt))
    if not folder.examples and not empty:
        reasons = [f"{name}: {reason}" for name, reason in folder.refused.items()]
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise ValueError(f"{listing.flag}: no picture can be read ({'; '.join(reasons[:5])}{more})")


def content(image: Image.Image) -> str:
    """What a picture is known by: a hash of its size and pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _example(source: Source, buckets: Sequence[Size], options: DataOptions, seed: int) -> Example:
    least = min(min(bucket) for bucket in buckets)
    picture = open_picture(source.content(), least)
    bucket = nearest(picture.size, buckets)
    settings = {"center_crop": options.center_crop, "random_flip": options.random_flip, "seed": seed}
    cut = views(picture.size, bucket, options.cache_variants, **settings)
    how = options.image_interpolation_mode
    found: dict[str, View] = {}
    for view in cut:
        found.setdefault(content(view.cut(picture.image, how)), view)
    kept = list(found.values())

    def image() -> Image.Image:
        return open_picture(source.content(), least).image

    masks: Sequence[Image.Image] = ()
    if options.masked_loss and (source.mask is not None or picture.alpha is not None):
        check_mask(source, picture, least)
        masks = Cuts(lambda: open_mask(source, least).image, kept, "box")
    micro = [view.micro(picture.size) for view in kept]
    facts = {"bucket": bucket, "keys": list(found), "micro": micro, "masks": masks, "repeats": source.repeats}
    caption = source.caption or ""
    return Example(source.name, Cuts(image, kept, how), caption, picture.size, captioned=bool(caption), **facts)


def _first(lines: Iterator[str], count: int = 10 * SHOWN) -> Iterator[str]:
    found = list(lines)
    yield from (f"  {line}" for line in found[:count])
    if len(found) > count:
        yield f"  ... and {len(found) - count} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
