"""Recipes: what a picture says of itself, and what files that nobody vouches for cannot do."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

pytest.importorskip("gradio")

from ui.cards import mix_of
from ui.recipe import KEY, Recipe
from ui.region import mask_of, painted
from ui.request import Dial, Request, decode_image, encode_image

MASK = encode_image(Image.linear_gradient("L").resize((8, 8)))
DIAL = Dial(weight=-0.5, start=0.2, end=0.9, bands=(1.0, 0.5), scopes={"up_blocks.1": 0.0}, mask=MASK)


def saved(path: Path, recipe: Any, key: str = KEY) -> Path:
    """A PNG with this text."""
    text = PngImagePlugin.PngInfo()
    text.add_text(key, recipe if isinstance(recipe, str) else json.dumps(recipe))
    Image.new("RGB", (4, 4)).save(path, pnginfo=text)
    return path


def test_a_recipe_comes_back_as_it_was(tmp_path: Path) -> None:
    recipe = Recipe(Request(prompt="a cät, <lora:x:0.5>", seed=2**32 - 1), {"pet": DIAL}, {"pet": "a" * 64})
    back = Recipe.read(saved(tmp_path / "a.png", recipe.as_dict()))
    assert (back.request, back.adapters, back.files) == (recipe.request, recipe.adapters, recipe.files)
    weight = back.adapters["pet"].as_weight(2.0)
    assert (weight.value, weight.start, weight.end, weight.bands) == (-1.0, 0.2, 0.9, (1.0, 0.5))
    assert weight.scopes == {"up_blocks.1": 0.0}
    assert weight.mask.shape == (8, 8)
    source = Recipe(Request(), image=Image.radial_gradient("L").convert("RGB"))
    read = Recipe.read(saved(tmp_path / "b.png", source.as_dict())).image
    assert read is not None
    assert source.image is not None
    assert read.tobytes() == source.image.tobytes()


GOOD: dict[str, Any] = {"version": 1, "request": {}, "adapters": {}, "files": {}}
HOSTILE = {
    "not JSON": ("{", "damaged"),
    "deep": ("[" * 100_000, "damaged"),
    "a list": ([1], "must be a mapping"),
    "no version": ({}, "version None"),
    "of the future": ({**GOOD, "version": 2}, "version 2"),
    "unknown part": ({**GOOD, "code": "x"}, "no part 'code'"),
    "unknown setting": ({**GOOD, "request": {"callback": "x"}}, "unknown option 'callback'"),
    "wrong kind": ({**GOOD, "request": {"prompt": ["x"]}}, "prompt must be str"),
    "out of bounds": ({**GOOD, "request": {"steps": 10**9}}, "at most 100"),
    "not a number": ('{"version": 1, "request": {"guidance_scale": NaN}}', "NaN is no number"),
    "infinite": ('{"version": 1, "request": {"guidance_scale": 1e999}}', "finite"),
    "weight": ({**GOOD, "adapters": {"a": {"weight": 1e9}}}, "adapter 'a': weight must be at most"),
    "scope": ({**GOOD, "adapters": {"a": {"scopes": {"x": "y"}}}}, "must be a finite number"),
    "steps": ({**GOOD, "adapters": {"a": {"start": 0.9, "end": 0.1}}}, "0 <= start < end <= 1"),
    "mask": ({**GOOD, "adapters": {"a": {"mask": "/etc/passwd"}}}, "base64,, got '/etc/passwd'"),
    "mask of another format": (
        {**GOOD, "adapters": {"a": {"mask": "data:image/png;base64,R0lGODlh"}}},
        "mask is no PNG: its data begin with b'GIF89a'; encode a PNG file in base64",
    ),
    "many": ({**GOOD, "adapters": {str(i): 1.0 for i in range(100)}}, "100 adapters"),
    "source": ({**GOOD, "image": {"path": "/etc/passwd"}}, "image of a recipe must be text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_one_clear_line(name: str, tmp_path: Path) -> None:
    text, words = HOSTILE[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        Recipe.read(saved(tmp_path / "a.png", text))
    assert words in str(caught.value)
    assert str(caught.value).startswith("a.png")
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_no_png_of_ours_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(ValueError, match="has no recipe"):
        Recipe.read(path)
    Image.new("RGB", (4, 4)).save(path, "JPEG")
    with pytest.raises(ValueError, match="is no PNG"):
        Recipe.read(path)
    path.write_bytes(saved(path, GOOD).read_bytes()[:60])
    with pytest.raises(ValueError, match=r"is no PNG|has no recipe"):
        Recipe.read(path)
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)  # 30 GB, if it were decoded
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(ValueError, match="is no PNG"):
        Recipe.read(path)


def test_what_is_painted_is_the_mask() -> None:
    assert mask_of(None) is None
    assert mask_of(painted((64, 32), None, None)) is None
    mask = Image.new("L", (64, 32))
    mask.paste(255, (0, 0, 32, 32))
    back = decode_image(mask_of(painted((64, 32), encode_image(mask), None)) or "", "mask")
    assert back.size == (128, 64)
    assert (back.getpixel((20, 20)), back.getpixel((100, 20))) == (255, 0)


def test_cards_say_how_adapters_act() -> None:
    dials = {
        "a": {"on": False}, "b": {"on": True, "weight": 2, "bands": [1.0, 1.0, 1.0], "scopes": {"mid_block": 1.0}},
        "c": {"region": False, "mask": MASK, "bands": [1.0, 0.5, 1.0], "scopes": {"x": 1, "y": 0}},
        "d": {"region": True, "mask": MASK}, "e": {"weight": 1.0},
    }  # fmt: skip
    mix = mix_of(["a", "b", "c", "d"], dials)
    assert mix == {"b": Dial(weight=2.0), "c": Dial(bands=(1.0, 0.5, 1.0), scopes={"y": 0.0}), "d": Dial(mask=MASK)}
