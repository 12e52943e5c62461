"""What the doctor found, as data and as text for people."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .adapter import FAMILIES

SHOWN = 5
"""Faults of a kind that are shown."""


@dataclasses.dataclass(frozen=True)
class AdapterReport:
    """What `inspect_adapter` found. `str()` of it is for people, `as_dict()` for programs."""

    path: Path
    size: int
    """Bytes."""
    numbers: int
    dialect: str
    """Whose names its keys are: `diffusion-adapters` for ours, or one of `formats`."""
    format: str
    """The same for people, with the version of ours."""
    families: Mapping[str, int]
    """Family -> layers of it; `unknown` for what is of none."""
    layers: Mapping[str, int]
    """Component -> layers."""
    ranks: Sequence[int] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    targets: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    base: str | None = None
    """The base that it was made for, as far as it tells."""
    evidence: str = ""
    trigger: str | None = None
    tags: Mapping[str, int] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """New tokens by text encoder."""
    domains: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Of a hybrid: family and options of each domain, its layers, and the least and largest of its coefficients."""
    checked_with: str | None = None
    """The base that it was held against; what follows is None or empty without."""
    coverage: float | None = None
    """The part of its layers that would be applied, in [0, 1]."""
    missing: Sequence[str] = ()
    unused: Sequence[str] = ()
    misshapen: Sequence[str] = ()
    fits: bool | None = None
    verdict: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON wants it."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    def __str__(self) -> str:
        return "\n".join(f"{name:<14} {text}" for name, text in self.rows())

    def rows(self) -> Iterator[tuple[str, str]]:
        """Title and text of each line."""
        yield "file", f"{self.path} ({self.size / 1024:,.1f} KiB, {self.numbers:,} numbers, {', '.join(self.dtypes)})"
        yield "format", self.format
        for family, count in self.families.items():
            title = family_title(family) if family in FAMILIES else "tensors that no family here reads"
            yield "family", f"{family}: {title} ({count} layers)"
        for domain, values in self.domains.items():
            span = " to ".join(f"{value:.3g}" for value in values["coefficients"])
            yield "domain", f"{domain}: {pairs({**values, 'coefficients': span})}"
        if self.options and not self.domains:
            yield "options", pairs(self.options)
        elif self.ranks:
            yield "rank", _several(self.ranks)
        yield "base", f"{self.base} ({self.evidence})" if self.base else "nothing in the file tells"
        for component, count in self.layers.items():
            yield component, f"{count} layers"
        if self.dialect == "diffusion-adapters":
            yield "targets", _several(self.targets) if self.targets else "all attention projections"
        for component, words in self.tokens.items():
            yield "tokens", f"{' '.join(words)} in {component}"
        yield "trigger", self.trigger or "-"
        if self.tags:
            yield "tags", pairs(self.tags)
        yield "training", pairs(self.training) or "-"
        if self.coverage is not None:
            yield "coverage", f"{100 * self.coverage:.1f} % of its layers, of {self.checked_with}"
        for kind in ("missing", "unused", "misshapen"):
            faults = getattr(self, kind)
            for fault in faults[:SHOWN]:
                yield kind, fault
            if len(faults) > SHOWN:
                yield kind, f"and {len(faults) - SHOWN} more"
        yield "verdict", self.verdict


def family_title(family: str) -> str:
    """The first line of what a family's file says of it."""
    text = sys.modules[FAMILIES[family].__module__].__doc__ or ""
    return text.strip().splitlines()[0]


def pairs(values: Mapping[str, Any]) -> str:
    """`name=value` of each, on one line."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _several(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:SHOWN]))
    return shown if len(values) <= SHOWN else f"{shown} and {len(values) - SHOWN} more"
