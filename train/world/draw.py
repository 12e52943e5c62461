"""Pictures of the world by Pillow: a background, one or two things with a pattern, and a style over all."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from train.world.captions import COLOURS, Attributes
from train.world.shapes import DARK, Colour, Pen, thing

SUPERSAMPLING = 3
HORIZON = 0.62


def _rgb(*colour: float) -> Colour:
    return tuple(max(0, min(255, round(c))) for c in colour)  # type: ignore[return-value]


@lru_cache(maxsize=8)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    return axis[None, :], axis[:, None]


def _gradient(side: int, top: Colour, bottom: Colour) -> Image.Image:
    column = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    rows = (1 - column) * np.array(top, np.float32) + column * np.array(bottom, np.float32)
    return Image.fromarray(np.broadcast_to(rows, (side, side, 3)).astype(np.uint8))


def background(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """The scene behind the things, (side, side) RGB; the horizon and small details vary."""
    jitter = float(rng.uniform(-0.04, 0.04))
    line = (HORIZON + jitter) * side
    shift = rng.uniform(-8, 8, 3)

    def sky(top: Colour, bottom: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = _gradient(side, _rgb(*(np.array(top) + shift)), _rgb(*(np.array(bottom) + shift)))
        return image, ImageDraw.Draw(image)

    def ground(colour: Colour) -> None:
        draw.rectangle([0, line, side, side], fill=_rgb(*(np.array(colour) + shift)))

    if name == "meadow":
        image, draw = sky((120, 190, 245), (190, 225, 250))
        ground((105, 190, 75))
    elif name == "beach":
        image, draw = sky((130, 205, 250), (200, 235, 250))
        draw.rectangle([0, line - 0.17 * side, side, line + 1], fill=_rgb(30, 120, 190))
        ground((240, 215, 150))
    elif name == "snow":
        image, draw = sky((170, 190, 210), (205, 215, 228))
        ground((246, 249, 253))
    elif name == "night":
        image, draw = sky((12, 14, 44), (34, 36, 84))
        ground((26, 30, 40))
        x, y, r = rng.uniform(0.08, 0.16) * side, rng.uniform(0.1, 0.16) * side, 0.075 * side
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(245, 240, 200))
    elif name == "city":
        image, draw = sky((205, 200, 205), (225, 220, 220))
        for i in range(6):
            height = (0.2 + 0.14 * ((i * 2) % 3) + rng.uniform(-0.03, 0.03)) * side
            draw.rectangle([i * side / 6, line - height, (i + 0.85) * side / 6, line], fill=_rgb(120, 118, 135))
        ground((85, 85, 92))
    elif name == "underwater":
        image, draw = sky((40, 175, 190), (8, 80, 120))
        for _ in range(4):
            x, y, r = rng.uniform(0, side), rng.uniform(0, 0.8 * side), rng.uniform(0.02, 0.035) * side
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(170, 230, 235))
    elif name == "desert":
        image, draw = sky((250, 190, 120), (252, 225, 170))
        ground((205, 140, 75))
        x = rng.uniform(0.1, 0.3) * side
        hill = [(x - 0.3 * side, line + 1), (x, line - 0.2 * side), (x + 0.3 * side, line + 1)]
        draw.polygon(hill, fill=(180, 115, 65))
    else:
        image, draw = sky((200, 200, 202), (170, 170, 174))
    return image


def _fill(pattern: str, main: Colour, other: Colour, pen: Pen) -> np.ndarray:
    """The object's colours over the whole canvas, (side, side, 3) float32; the pattern hangs on the object."""
    side = pen.main.width
    x, y = _grid(side)
    x, y = (x * side - pen.centre[0]) / pen.radius, (y * side - pen.centre[1]) / pen.radius
    if pattern == "striped":
        second = np.broadcast_to(np.mod(y + 0.19, 0.76) > 0.38, (side, side))
    elif pattern == "checkered":
        second = np.mod(np.floor(x / 0.45) + np.floor(y / 0.45), 2) > 0.5
    elif pattern == "spotted":
        step = 0.62
        row = np.floor(y / step)
        u, v = np.mod(x + 0.5 * step * np.mod(row, 2), step) - step / 2, np.mod(y, step) - step / 2
        second = u * u + v * v < 0.20**2
    elif pattern == "belly":
        second = (x / 0.46) ** 2 + ((y - 0.45) / 0.42) ** 2 < 1
    elif pattern == "cap":
        second = np.broadcast_to(y < -0.3, (side, side))
    elif pattern == "halves":
        second = np.broadcast_to(x > 0, (side, side))
    elif pattern == "sash":
        second = np.abs(y - 0.15 + 0.3 * x) < 0.24
    elif pattern == "socks":
        second = np.broadcast_to(y > 0.42, (side, side))
    elif pattern == "patch":
        second = (x + 0.36) ** 2 + (y + 0.22) ** 2 < 0.42**2
    elif pattern == "diagonal":
        second = x > y + 0.1
    else:
        second = np.zeros((side, side), bool)
    return np.where(second[..., None], np.array(other, np.float32), np.array(main, np.float32))


def contrast(colour: str) -> Colour:
    """The second colour of a pattern: white on dark colours, near black on light ones."""
    return (45, 42, 60) if colour in ("yellow", "white", "pink", "orange") else (248, 248, 248)


def _place(image: Image.Image, a: Attributes, centre: tuple[float, float], radius: float, style: str) -> Image.Image:
    side = image.width
    pen = Pen(side, centre, radius)
    thing(pen, a)
    other = COLOURS[a.colour2] if a.colour2 else contrast(a.colour)
    fill = _fill(a.pattern, COLOURS[a.colour], other, pen)
    if style in ("photo", "neon"):  # light from above left
        x, y = _grid(side)
        shade = 1.06 - 0.26 * ((x * side - centre[0]) / radius * 0.4 + (y * side - centre[1]) / radius * 0.6 + 0.3)
        fill = np.clip(fill * np.clip(shade, 0.62, 1.12)[..., None], 0, 255)
    if style == "sketch":
        fill = 190 + 0.25 * fill
    whole = np.maximum(np.asarray(pen.main), np.asarray(pen.cover))
    width = {"photo": 0.006, "mosaic": 0.004}.get(style, 0.016) * side
    edge = np.asarray(Image.fromarray(whole).filter(ImageFilter.GaussianBlur(width)))
    pixels = np.asarray(image).astype(np.float32)
    if style == "photo":  # a soft shadow on the ground
        x, y = _grid(side)
        spot = ((x * side - centre[0]) / radius) ** 2 + ((y * side - centre[1] - 0.95 * radius) / (0.24 * radius)) ** 2
        pixels = pixels * (1 - 0.4 * np.clip(1.2 - spot, 0, 1))[..., None]
    ink = np.array((70, 255, 220) if style == "neon" else DARK, np.float32)
    pixels = np.where((edge > 16)[..., None], ink, pixels)
    pixels = np.where(np.asarray(pen.main)[..., None] > 127, fill, pixels)
    pixels = np.where(np.asarray(pen.cover)[..., None] > 127, np.asarray(pen.detail), pixels)
    return Image.fromarray(pixels.astype(np.uint8))


def _finish(image: Image.Image, style: str, size: int) -> Image.Image:
    if style == "mosaic":  # coarse pixels under a grid of dark joints, twelve tiles a side
        coarse = image.resize((24, 24), Image.Resampling.BOX).resize((size, size), Image.Resampling.NEAREST)
        pixels = np.asarray(coarse).astype(np.float32)
        joint = np.mod(np.arange(size) + 1, size / 12) < max(1, size / 64)
        pixels[joint] *= 0.6
        pixels[:, joint] *= 0.6
        return Image.fromarray(pixels.astype(np.uint8))
    return image.resize((size, size), Image.Resampling.BOX)


def render(
    a: Attributes, rng: np.random.Generator, size: int = 48, beside: Attributes | None = None, finish: str = ""
) -> Image.Image:
    """The picture of `a`, (size, size) RGB. What `a` leaves open (place, size, scene details) comes from `rng`.

    `beside`: what stands to its right, if it is more than `a.second` can say. `finish`: a style of the whole picture,
    such as mosaic, over that of `a`.
    """
    if a.second:
        beside = Attributes(kind=a.second[0], colour=a.second[1])
    side = size * SUPERSAMPLING
    image = background(a.background, side, rng)
    if a.style == "drawing":  # thick ink on paler paper
        image = Image.fromarray((0.68 * np.asarray(image) + 82).astype(np.uint8))
    elif a.style == "sketch":
        image = Image.fromarray((215 + 0.15 * np.asarray(image.convert("L").convert("RGB"))).astype(np.uint8))
    elif a.style == "neon":
        image = Image.fromarray((0.2 * np.asarray(image)).astype(np.uint8))
    radius = float(rng.uniform(0.31, 0.38)) * side
    centre = (float(rng.uniform(0.42, 0.58)) * side, float(rng.uniform(0.5, 0.6)) * side)
    if beside:
        radius *= 0.66
        centre = (float(rng.uniform(0.25, 0.29)) * side, centre[1])
        right = (float(rng.uniform(0.71, 0.75)) * side, float(rng.uniform(0.5, 0.6)) * side)
        image = _place(image, beside, right, radius * float(rng.uniform(0.92, 1.08)), a.style)
    image = _place(image, a, centre, radius, a.style)
    return _finish(image, finish or a.style, size)
