"""An axis of a grid: a setting, and the values that it takes along a row or down a column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from diffusion_adapters.registry import nearest

MAX_CELLS = 144
KINDS = {
    "adapter": "Adapter", "weight": "Weight", "checkpoint": "Checkpoint of a run", "family": "Family",
    "seed": "Seed", "prompt": "Prompt", "steps": "Steps", "guidance_scale": "Guidance",
}  # fmt: skip
"""What can stand on an axis, with its title."""
CHOOSERS = ("adapter", "checkpoint", "family")
"""Those that say which adapter a cell has."""
NUMBERS = ("weight", "seed", "steps", "guidance_scale")


@dataclass(frozen=True)
class Axis:
    """A setting and its values. `of`: the adapter that a weight is of (empty: all in the cell), or the run."""

    kind: str
    values: tuple[Any, ...]
    of: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown axis {self.kind!r}, {nearest(self.kind, KINDS)}")
        if not self.values:
            raise ValueError(f"the axis {KINDS[self.kind]} has no values")
        allowed = (int, float) if self.kind in NUMBERS else (str, int)
        for value in self.values:
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise ValueError(f"{KINDS[self.kind]}: {str(value)[:40]!r} cannot stand on an axis")
        if self.kind == "checkpoint" and not self.of:
            raise ValueError("choose the run whose checkpoints are compared")

    @classmethod
    def read(cls, given: Any) -> Self:
        """From a mapping of `kind`, `values` (a list, or text as a user types it) and `of`. Raises ValueError."""
        if not isinstance(given, Mapping) or not {"kind", "values"} <= set(given) <= {"kind", "values", "of"}:
            raise ValueError(f"an axis is a mapping with kind, values and perhaps of; got {str(given)[:80]}")
        kind, values = str(given["kind"]), given["values"]
        if isinstance(values, str):
            values = numbers(values, KINDS.get(kind, kind)) if kind in NUMBERS else lines(values)
        elif not isinstance(values, Sequence):
            values = [values]
        return cls(kind, tuple(values), str(given.get("of") or ""))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "values": list(self.values), "of": self.of}

    @property
    def title(self) -> str:
        """What stands on it, in words."""
        return f"{KINDS[self.kind]} of {self.of}" if self.kind == "weight" and self.of else KINDS[self.kind]

    def label(self, value: Any) -> str:
        """A value in words, short enough to stand beside its row."""
        text = f"{value:g}" if isinstance(value, float) else str(value)
        return f"{self.of} {text}" if self.kind == "checkpoint" else text


def lines(text: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def numbers(text: str, name: str) -> list[float | int]:
    """`0, 0.5, 1` or `0 to 1 in 5`. Raises ValueError for anything else."""
    number = r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*"
    if found := re.fullmatch(rf"{number}to{number}in\s*(\d+)\s*", text):
        low, high, count = float(found[1]), float(found[2]), int(found[3])
        if not 2 <= count <= MAX_CELLS:
            raise ValueError(f"{name}: {count} steps; give from 2 to {MAX_CELLS}")
        return [round(low + (high - low) * i / (count - 1), 6) for i in range(count)]
    try:
        parts = [part for part in re.split(r"[,;\s]+", text.strip()) if part]
        return [int(part) if re.fullmatch(r"[-+]?\d+", part) else float(part) for part in parts]
    except ValueError:
        raise ValueError(f"{name}: {text[:40]!r} is no list of numbers like 0, 0.5, 1 and no '0 to 1 in 5'") from None
