"""Folders of pictures, and what is read from them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from train.data import DataOptions, read_folder

RED, GREEN = (220, 30, 30), (30, 200, 30)


def save(path, size=(16, 16), colour=RED, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **settings)
    return path


def write_rows(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def read(folder, side=16, **options):
    options = {"instance_data_dir": folder, "instance_prompt": "a photo of sks cat"} | options
    return read_folder(DataOptions(**options), side, 0)


def prompts(found):
    return {example.name: example.prompt for example in found.examples}


def message(folder, **options):
    """The one line that is said, by options alone or with the files that they name."""
    with pytest.raises((ValueError, OSError)) as caught:
        read(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def half_mask(size=(16, 16)):
    image = Image.new("L", size, 0)
    image.paste(255, (0, 0, size[0] // 2, size[1]))
    return image
