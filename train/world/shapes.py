"""Silhouettes and details of the world's things, in a unit box: x to the right, y down, both in [-1, 1]."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from train.world.captions import Attributes

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]
DARK, LIGHT = (28, 24, 32), (250, 250, 245)
WOOD, GLASS, CREAM, ROOF = (120, 74, 40), (190, 225, 245), (240, 225, 195), (95, 55, 45)


class Pen:
    """Draws one object: `main` collects what takes the object's colour and pattern, `detail` what has its own."""

    def __init__(self, side: int, centre: tuple[float, float], radius: float) -> None:
        self.centre, self.radius = centre, radius
        self.main = Image.new("L", (side, side))
        self.detail = Image.new("RGB", (side, side))
        self.cover = Image.new("L", (side, side))
        self._draws = {layer: ImageDraw.Draw(getattr(self, layer)) for layer in ("main", "detail", "cover")}

    def _map(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(self.centre[0] + x * self.radius, self.centre[1] + y * self.radius) for x, y in points]

    def _each(self, colour: Colour | None) -> list[tuple[ImageDraw.ImageDraw, int | Colour]]:
        if colour is None:
            return [(self._draws["main"], 255)]
        return [(self._draws["detail"], colour), (self._draws["cover"], 255)]

    def oval(self, box: Box, colour: Colour | None = None) -> None:
        for draw, fill in self._each(colour):
            draw.ellipse(self._map([(box[0], box[1]), (box[2], box[3])]), fill=fill)

    def block(self, box: Box, colour: Colour | None = None, corner: float = 0.0) -> None:
        for draw, fill in self._each(colour):
            area = self._map([(box[0], box[1]), (box[2], box[3])])
            draw.rounded_rectangle([*area[0], *area[1]], corner * self.radius, fill=fill)

    def shape(self, points: list[tuple[float, float]], colour: Colour | None = None) -> None:
        for draw, fill in self._each(colour):
            draw.polygon(self._map(points), fill=fill)

    def curve(self, box: Box, start: float, end: float, width: float, colour: Colour | None = None) -> None:
        """An arc of `width` (in radii) between two angles in degrees, clockwise from three o'clock."""
        for draw, fill in self._each(colour):
            area = self._map([(box[0], box[1]), (box[2], box[3])])
            draw.arc([*area[0], *area[1]], start, end, fill=fill, width=max(1, round(width * self.radius)))


def eye(pen: Pen, x: float, y: float, size: float = 0.2) -> None:
    """A white eye with a dark pupil."""
    pen.oval((x - size, y - size, x + size, y + size), LIGHT)
    pen.oval((x - 0.5 * size, y - 0.5 * size, x + 0.6 * size, y + 0.6 * size), DARK)


def _ears(pen: Pen, ears: str, top: float, half: float) -> None:
    for side in (-1, 1):
        x = side * half * 0.62
        if ears == "pointy":
            pen.shape([(x - 0.26, top + 0.3), (x + 0.26, top + 0.3), (x + side * 0.16, top - 0.42)])
        elif ears == "floppy":
            pen.oval((side * half - 0.24, top + 0.05, side * half + 0.24, top + 0.85))
        elif ears == "long":
            pen.oval((x - 0.17, top - 0.6, x + 0.17, top + 0.4))
        elif ears == "horned":
            pen.shape([(x - 0.2, top + 0.2), (x + 0.2, top + 0.2), (x + side * 0.36, top - 0.5)], CREAM)
        elif ears == "antennae":
            pen.block((x - 0.06, top - 0.4, x + 0.06, top + 0.3), DARK)
            pen.oval((x - 0.17, top - 0.6, x + 0.17, top - 0.26), (250, 220, 40))
        elif ears == "finned":
            pen.shape(
                [(side * half * 0.7, top + 0.5), (side * (half + 0.5), top - 0.1), (side * half * 0.9, top + 1.1)]
            )
        elif ears == "bearish":
            pen.oval((side * half * 0.72 - 0.26, top - 0.16, side * half * 0.72 + 0.26, top + 0.36))
        elif ears == "crested":
            for x in (0.0, side * 0.3):
                pen.shape([(x - 0.17, top + 0.24), (x + 0.17, top + 0.24), (x, top - 0.34 + abs(x))])
        elif ears == "unicorn":
            pen.shape([(-0.16, top + 0.2), (0.16, top + 0.2), (0.0, top - 0.62)], ROOF)


def creature(pen: Pen, a: Attributes) -> tuple[float, float]:
    """The class noun with hidden variety; returns the vertical span of the body."""
    half, top, low = {"round": (0.74, -0.6, 0.82), "tall": (0.54, -0.7, 0.9), "wide": (0.95, -0.38, 0.8)}.get(
        a.body, (0.7, -0.6, 0.86)
    )
    if a.tail == "curly":
        pen.curve((half - 0.2, 0.0, half + 0.4, 0.66), -120, 130, 0.17)
    elif a.tail == "thick":
        pen.shape([(half * 0.5, 0.75), (half + 0.42, 0.06), (half * 0.8, 0.1)])
    _ears(pen, a.ears, top, half)
    if a.body == "boxy":
        pen.block((-half, top, half, low), corner=0.12)
    elif a.body == "triangular":
        pen.shape([(0, top - 0.3), (half + 0.25, low), (-half - 0.25, low)])
    elif a.body == "pear":
        pen.oval((-half * 0.65, top, half * 0.65, top + 0.9))
        pen.oval((-half - 0.1, top + 0.5, half + 0.1, low))
    elif a.body == "hexagonal":
        corners = ((-0.5, top), (0.5, top), (1.1, 0.1), (0.5, low), (-0.5, low), (-1.1, 0.1))
        pen.shape([(x * half, y) for x, y in corners])
    elif a.body == "domed":
        pen.oval((-half, top, half, top + 1.3))
        pen.block((-half, top + 0.65, half, low))
    elif a.body == "diamond":
        pen.shape([(0, top - 0.25), (half + 0.3, 0.15), (0, low + 0.1), (-half - 0.3, 0.15)])
    else:
        pen.oval((-half, top, half, low))
    for side in (-1, 1):
        pen.oval((side * half * 0.5 - 0.22, low - 0.14, side * half * 0.5 + 0.22, low + 0.14))
    y = top + 0.36 * (low - top)
    if a.eyes == "one":
        eye(pen, 0, y, 0.31)
    else:
        for x in (-0.28, 0.28):
            eye(pen, x, y, 0.22)
        if a.eyes == "three":
            eye(pen, 0, y - 0.26, 0.16)
    mouth = top + 0.68 * (low - top)
    if a.mouth == "smiling":
        pen.curve((-0.3, mouth - 0.3, 0.3, mouth + 0.12), 20, 160, 0.1, DARK)
    else:
        pen.oval((-0.22, mouth - 0.12, 0.22, mouth + 0.18), DARK)
        if a.mouth == "toothy":
            pen.block((-0.12, mouth - 0.12, 0.12, mouth), LIGHT)
    return top, low


def thing(pen: Pen, a: Attributes) -> None:
    """Draw the object `a.kind`."""
    kind = a.kind
    if kind == "creature":
        creature(pen, a)
    elif kind == "ball":
        pen.oval((-0.85, -0.85, 0.85, 0.85))
    elif kind == "star":
        spokes = [(1.05 if i % 2 == 0 else 0.46, math.radians(36 * i - 90)) for i in range(10)]
        pen.shape([(r * math.cos(angle), 0.06 + r * math.sin(angle)) for r, angle in spokes])
    elif kind == "heart":
        turn = [2 * math.pi * i / 40 for i in range(40)]
        curve = [(16 * math.sin(t) ** 3, 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) for t in turn]
        pen.shape([(x / 17, -y / 16) for x, y in curve])
    elif kind == "house":
        pen.block((-0.82, -0.3, 0.82, 0.9))
        pen.shape([(-1.05, -0.25), (0, -1.05), (1.05, -0.25)], ROOF)
        pen.block((-0.56, 0.3, -0.2, 0.9), DARK)
        pen.block((0.14, 0.05, 0.56, 0.42), GLASS)
    elif kind == "tree":
        pen.block((-0.18, 0.4, 0.18, 0.98), WOOD)
        for y, half in ((0.55, 0.85), (0.1, 0.68), (-0.3, 0.48)):
            pen.shape([(-half, y), (0, y - 0.75), (half, y)])
    elif kind == "car":
        pen.shape([(-0.6, -0.05), (-0.38, -0.58), (0.36, -0.58), (0.62, -0.05)])
        pen.block((-1.05, -0.1, 1.05, 0.5), corner=0.15)
        pen.shape([(-0.44, -0.06), (-0.3, -0.44), (-0.04, -0.44), (-0.04, -0.06)], GLASS)
        pen.shape([(0.06, -0.06), (0.06, -0.44), (0.28, -0.44), (0.45, -0.06)], GLASS)
        for x in (-0.55, 0.55):
            pen.oval((x - 0.29, 0.22, x + 0.29, 0.8), DARK)
            pen.oval((x - 0.11, 0.4, x + 0.11, 0.62), LIGHT)
    elif kind == "fish":
        pen.oval((-1.0, -0.6, 0.6, 0.6))
        pen.shape([(0.35, 0), (1.05, -0.62), (1.05, 0.62)])
        eye(pen, -0.6, -0.12, 0.2)
    elif kind == "mushroom":
        pen.block((-0.27, 0.0, 0.27, 0.95), CREAM, corner=0.15)
        pen.oval((-0.95, -0.8, 0.95, 0.9))
        side = pen.main.width
        bottom = pen.centre[1] + 0.12 * pen.radius
        ImageDraw.Draw(pen.main).rectangle([0, bottom, side, side], fill=0)
    elif kind == "cup":
        pen.curve((0.3, -0.35, 1.05, 0.45), -100, 100, 0.2)
        pen.shape([(-0.72, -0.65), (0.62, -0.65), (0.48, 0.85), (-0.58, 0.85)])
        pen.oval((-0.72, -0.83, 0.62, -0.47), DARK)
