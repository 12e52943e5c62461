"""One image file of any kind -> RGB pictures of one size."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

MAX_PIXELS = 2 * 89_478_485
"""Largest picture that is decoded, in pixels: where Pillow suspects a decompression bomb."""
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA")
"""Pillow's readers that are asked; others (EPS, PDF, ...) start programs or are no pictures."""


def open_rgb(path: Path, least: int) -> Image.Image:
    """The picture in `path`: upright, 8-bit sRGB, transparency on white. Raises ValueError with the reason.

    `least`: the shorter side that will be used, in pixels; a JPEG much larger than that is decoded at a fraction.
    """
    if path.stat().st_size == 0:
        raise ValueError("empty file")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ValueError(_too_large(f"{width} x {height}"))
                image.draft(None, (2 * least, 2 * least))
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        hint = "; convert it to JPEG or PNG" if path.suffix.lower() in (".heic", ".heif") else ""
        raise ValueError(f"not an image that Pillow can read{hint}") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large("its size")) from None
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise ValueError(f"damaged: {error or type(error).__name__}") from None


def _too_large(size: str) -> str:
    return f"{size} exceeds {MAX_PIXELS / 1e6:.0f} million pixels; scale it down"


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if profile:
        image = _to_srgb(image, profile)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


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


def square(image: Image.Image, size: int, place: tuple[float, float] = (0.5, 0.5), flip: bool = False) -> Image.Image:
    """The largest square of the picture at a relative `place`, resized to (size, size)."""
    side = min(image.size)
    left, top = ((length - side) * part for length, part in zip(image.size, place, strict=True))
    box = (left, top, left + side, top + side)
    image = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return ImageOps.mirror(image) if flip else image


def variants(
    image: Image.Image, size: int, count: int, *, center_crop: bool, random_flip: bool, seed: int
) -> list[Image.Image]:
    """Up to `count` different squares of one picture: first the middle, then seeded crops; every other one mirrored."""
    rng = random.Random(seed)
    moves = not center_crop and image.width != image.height
    count = count if moves else min(count, 2) if random_flip else 1
    places = [(0.5, 0.5) if not moves or i < 1 + random_flip else (rng.random(), rng.random()) for i in range(count)]
    return [square(image, size, place, random_flip and i % 2 == 1) for i, place in enumerate(places)]
