"""Pictures in rows as one picture, and apart again."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image


def join(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """All pictures, of one size, at that size: row below row."""
    width, height = rows[0][0].size
    whole = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            whole.paste(image, (x * width, y * height))
    return whole


def cut(whole: Image.Image, rows: int, columns: int) -> list[list[Image.Image]]:
    """The pictures of `join`."""
    width, height = whole.width // columns, whole.height // rows
    boxes = [[(x * width, y * height, (x + 1) * width, (y + 1) * height) for x in range(columns)] for y in range(rows)]
    return [[whole.crop(box) for box in row] for row in boxes]
