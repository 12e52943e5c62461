"""Masks of pictures: where the loss counts."""

from __future__ import annotations

from pathlib import Path

from train.data.sources import Source
from train.images import Picture, open_picture


class MaskError(ValueError):
    """A mask that does not belong to its picture: a mistake that stops the run, not a file to leave out."""


def open_mask(source: Source, least: int) -> Picture:
    """The mask of a picture in grey, white where it counts: a file of its own, else the picture's alpha channel."""
    if source.mask is None:
        picture = open_picture(source.content(), least)
        assert picture.alpha is not None
        return picture._replace(image=picture.alpha)
    picture = open_picture(source.mask(), least, paper="black")
    return picture._replace(image=picture.image.convert("L"))


def check_mask(source: Source, picture: Picture, least: int) -> None:
    """Raise MaskError for a mask that cannot be read, is of another size than its picture, or leaves nothing of it."""
    name = source.mask() if source.mask else b""
    place = f"{name if isinstance(name, Path) else 'the mask'} of {source.name}"
    try:
        mask = open_mask(source, least)
    except (ValueError, OSError) as error:
        raise MaskError(f"{place}: {error}") from None
    if mask.size != picture.size:
        ours, other = (f"{width} x {height}" for width, height in (mask.size, picture.size))
        raise MaskError(f"{place} has {ours} pixels, the picture {other}; make them equal")
    if mask.image.getextrema()[1] == 0:
        raise MaskError(f"{place} is black everywhere, so that nothing would be trained; leave out mask or picture")
