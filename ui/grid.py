"""A grid of pictures: one or two axes, each a setting with its values, and what every cell is drawn from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

from PIL import Image

from ui.axes import CHOOSERS, MAX_CELLS, Axis
from ui.bases import Base
from ui.library import Library
from ui.recipe import KEY as PICTURE
from ui.recipe import Recipe, read_png
from ui.request import Dial, Request

KEY = "diffusion_adapters_grid"
"""The keyword of the text chunk in a sheet."""
VERSION = 1


@dataclass(frozen=True)
class Cell:
    """What one picture is drawn from, and where it stands."""

    row: int
    column: int
    request: Request
    mix: Mapping[str, Dial]
    label: str


@dataclass(frozen=True)
class Plan:
    """A grid before it is drawn: what all cells share, and the axes. `y` is None for a single row."""

    request: Request
    x: Axis
    y: Axis | None = None
    adapters: tuple[str, ...] = ()
    """In every cell."""
    weight: float = 1.0
    """Of each adapter, unless an axis says otherwise."""
    blend: bool = False
    """Whether it is a blend map: a click takes the mix."""

    def __post_init__(self) -> None:
        axes = self.axes
        if len(axes) == 2:
            if all(axis.kind in CHOOSERS for axis in axes):
                names = " and ".join(axis.title for axis in axes)
                raise ValueError(f"{names} both say which adapter a cell has; put something else on one axis")
            if (axes[0].kind, axes[0].of) == (axes[1].kind, axes[1].of):
                raise ValueError(f"{axes[0].title} is on both axes")
        count = len(self.x.values) * (len(self.y.values) if self.y else 1)
        if count > MAX_CELLS:
            raise ValueError(f"{count} cells; at most {MAX_CELLS} are drawn at once")

    @property
    def axes(self) -> list[Axis]:
        """One or two."""
        return [self.x, *([self.y] if self.y else [])]

    @classmethod
    def of_blend(cls, request: Request, first: str, second: str, alphas: Any, betas: Any) -> Self:
        """The α × β map of two adapters."""
        if not first or not second or first == second:
            raise ValueError("a blend map is of two different adapters; choose both")
        axes = [{"kind": "weight", "of": name, "values": own} for name, own in ((first, alphas), (second, betas))]
        return cls(request, *map(Axis.read, axes), (first, second), blend=True)

    def cells(self, library: Library, base: Base) -> list[Cell]:
        """Row by row. Raises ValueError for what cannot be drawn, before anything is."""
        library.scan(base)
        rows = range(len(self.y.values) if self.y else 1)
        found = [self.cell(row, column, library, base) for row, column in product(rows, range(len(self.x.values)))]
        for name in {name: None for cell in found for name in cell.mix}:
            library.find(name, base)
        return found

    def cell(self, row: int, column: int, library: Library, base: Base) -> Cell:
        """One of them. Raises ValueError for a run or a family that is not there."""
        chosen = [(axis, axis.values[at]) for axis, at in zip(self.axes, (column, row), strict=False)]
        names = list(self.adapters)
        weights: dict[str, Any] = {}
        changes: dict[str, Any] = {"num_images": 1}
        for axis, value in chosen:
            if axis.kind in CHOOSERS:
                names += [name for name in [_adapter(axis, value, library, base)] if name not in names]
            elif axis.kind == "weight":
                weights[axis.of] = value
            else:
                changes[axis.kind] = value
        request = Request.from_page({**self.request.as_dict(), **changes})
        for name in weights:
            if name and name not in names:
                names.append(name)
        shared = weights.get("", self.weight)
        mix = {name: Dial.read(name, weights.get(name, shared)) for name in names if name}
        label = ", ".join(f"{axis.title.lower()} {axis.label(value)}" for axis, value in chosen)
        return Cell(row, column, request, mix, label)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON wants them."""
        axes = {"x": self.x.as_dict(), "y": self.y and self.y.as_dict(), "blend": self.blend}
        own = {"version": VERSION, "request": self.request.as_dict(), "adapters": list(self.adapters)}
        return {**own, "weight": self.weight, **axes}

    @classmethod
    def from_dict(cls, given: Any) -> Self:
        """Checked. Raises ValueError, TypeError."""
        if not isinstance(given, Mapping) or given.get("version") != VERSION:
            raise ValueError(f"no grid of version {VERSION}")
        y = given.get("y")
        return cls(
            Request.from_page(dict(given.get("request") or {})), Axis.read(given.get("x")), y and Axis.read(y),
            tuple(map(str, given.get("adapters") or ())), float(given.get("weight", 1.0)), bool(given.get("blend")),
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Self:
        """That of a sheet. Raises ValueError, TypeError."""
        return read_png(path, {KEY: cls.from_dict})

    def written(self, sheet: Image.Image) -> Image.Image:
        """The sheet with the plan in `info`, from where it goes into a PNG's text."""
        sheet.info[KEY] = json.dumps(self.as_dict())
        return sheet


def read_either(path: str | Path) -> Plan | Recipe:
    """What a picture or a sheet of this app was made from. Raises ValueError, TypeError."""
    return read_png(path, {PICTURE: Recipe.from_dict, KEY: Plan.from_dict})


def _adapter(axis: Axis, value: Any, library: Library, base: Base) -> str:
    """The adapter that a value of a chooser stands for; empty is the base alone."""
    if axis.kind == "adapter":
        return str(value)
    if axis.kind == "checkpoint":
        runs = library.runs(base)
        if axis.of not in runs:
            raise ValueError(f"no run {axis.of!r} with checkpoints; there are: {', '.join(runs) or 'none'}")
        if str(value) not in runs[axis.of]:
            raise ValueError(f"the run {axis.of} has no checkpoint {value}; it has: {', '.join(runs[axis.of])}")
        return runs[axis.of][str(value)].name
    own = [entry for entry in library.usable(base).values() if entry.family == value and entry.step is None]
    if not own:
        raise ValueError(f"no adapter of family {value!r} fits this base")
    return max(own, key=lambda entry: entry.stamp).name
