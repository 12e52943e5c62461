"""One image file of any kind -> RGB pictures of the sizes that are trained on."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

MAX_PIXELS = 2 * 89_478_485
"""Largest picture that is decoded, in pixels: where Pillow suspects a decompression bomb."""
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA")
"""Pillow's readers that are asked; others (EPS, PDF, ...) start programs or are no pictures."""

INTERPOLATION = {name.lower(): Image.Resampling[name] for name in ("LANCZOS", "BICUBIC", "BILINEAR", "BOX", "NEAREST")}


class Picture(NamedTuple):
    """An opened file. `alpha` is 8-bit grey, or None without transparency; `size`: width, height of the whole file."""

    image: Image.Image
    alpha: Image.Image | None
    size: tuple[int, int]


def open_rgb(source: Path | bytes, least: int) -> Image.Image:
    """The picture alone of what `open_picture` finds."""
    return open_picture(source, least).image


def open_picture(source: Path | bytes, least: int, paper: str = "white") -> Picture:
    """The picture in a file or in its content: upright, 8-bit sRGB, transparency on `paper`. Raises ValueError.

    `least`: the shorter side that will be used, in pixels; a JPEG much larger than that is decoded at a fraction.
    """
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise ValueError("empty file")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ValueError(_too_large(f"{width} x {height}"))
                image.draft(None, (2 * least, 2 * least))
                image.load()
                turned = image.getexif().get(0x0112, 1) >= 5  # the EXIF orientations that swap the sides
                shown, alpha = _to_rgb(ImageOps.exif_transpose(image), paper)
                return Picture(shown, alpha, (height, width) if turned else (width, height))
    except Image.UnidentifiedImageError:
        heic = isinstance(source, Path) and source.suffix.lower() in (".heic", ".heif")
        hint = "; convert it to JPEG or PNG" if heic else ""
        raise ValueError(f"not an image that Pillow can read{hint}") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large("its size")) from None
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise ValueError(f"damaged: {error or type(error).__name__}") from None


def _too_large(size: str) -> str:
    return f"{size} exceeds {MAX_PIXELS / 1e6:.0f} million pixels; scale it down"


def _to_rgb(image: Image.Image, paper: str) -> tuple[Image.Image, Image.Image | None]:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if profile:
        image = _to_srgb(image, profile)
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    if alpha is not None:
        image = Image.alpha_composite(Image.new("RGBA", image.size, paper), image)
    return image.convert("RGB"), alpha


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating-point grey. The range is 0-65535, or 0-1 or 0-255 where the values fit in it."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = 1.0 if image.mode == "F" and values.max() <= 1 else 255.0 if image.mode[:1] == "F" else 65535.0
    return Image.fromarray((values / max(top, values.max()) * 255).clip(0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours from the embedded profile to sRGB; a profile that does not fit the picture is ignored, as viewers do."""
    mode = image.mode if image.mode in ("RGB", "RGBA") else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


class View(NamedTuple):
    """How a picture is cut: a rectangle of the shape of `size` at a relative `place`, resized to it, then mirrored."""

    size: tuple[int, int]
    place: tuple[float, float] = (0.5, 0.5)
    flip: bool = False

    def cut(self, image: Image.Image, how: str = "lanczos") -> Image.Image:
        """The part of `image` that the view shows, of its `size` (width, height)."""
        box = self._box(image.size)
        image = image.resize(self.size, INTERPOLATION[how], box=box, reducing_gap=3.0)
        return ImageOps.mirror(image) if self.flip else image

    def micro(self, whole: tuple[int, int]) -> tuple[int, int, int, int, int, int]:
        """SDXL's conditions: height and width of the `whole` picture, top and left of the cut once resized, its own."""
        left, top, right, _ = self._box(whole)
        scale = self.size[0] / (right - left)
        left = whole[0] - right if self.flip else left
        return (*whole[::-1], round(top * scale), round(left * scale), *self.size[::-1])

    def _box(self, whole: tuple[int, int]) -> tuple[float, float, float, float]:
        scale = min(side / own for side, own in zip(whole, self.size, strict=True))
        sides = [own * scale for own in self.size]
        left, top = ((side - part) * at for side, part, at in zip(whole, sides, self.place, strict=True))
        return left, top, min(left + sides[0], whole[0]), min(top + sides[1], whole[1])


def views(
    whole: tuple[int, int], size: tuple[int, int], count: int, *, center_crop: bool, random_flip: bool, seed: int
) -> list[View]:
    """Up to `count` different views of one picture: first the middle, then seeded places; every other one mirrored."""
    rng = random.Random(seed)
    ratios = [own / side for own, side in zip(whole, size, strict=True)]
    spare = max((ratio / min(ratios) - 1) * side for ratio, side in zip(ratios, size, strict=True))
    moves = not center_crop and spare >= 1  # pixels by which the cut can be moved
    count = count if moves else min(count, 2) if random_flip else 1
    places = [(0.5, 0.5) if not moves or i < 1 + random_flip else (rng.random(), rng.random()) for i in range(count)]
    return [View(size, place, random_flip and i % 2 == 1) for i, place in enumerate(places)]
