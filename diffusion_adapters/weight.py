"""What an adapter is multiplied by: a number, or one that depends on place, denoising step, region, sample and band."""

from __future__ import annotations

import copy
import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .registry import nearest


@dataclasses.dataclass(frozen=True, eq=False)
class AdapterWeight:
    """The weight of an adapter where one number does not say it. All parts multiply; each may be left out.

    - `value`: the number.
    - `scopes`: component, block or projection -> number: `{"unet": 0.5, "up_blocks.1": 1.0, "attn2.to_k": 0.0}`. A key
      matches whole segments of a path like `unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k`; of several
      that match, the one of most segments counts, of equals the last.
    - `start`, `end`: the parts of the denoising steps between which the adapter acts, as for a ControlNet.
    - `schedule`: {position: number}, linear between them, or a function of the position. The position is the part of
      the steps that are done, in [0, 1), or with `by="sigma"` the noise level of the scheduler.
    - `mask`: where in the image it acts: a PIL image, or an array or tensor (h, w) with values in [0, 1], of any size.
    - `samples`: one number for each image of the batch.
    - `bands`: gains of what it adds to image tokens, split by a wavelet over the token grid, from coarse to fine; the
      last is the finest detail, of neighbouring tokens.
    - `domains`: {domain: number}, the dials of a hybrid; 1 of those that are left out.

    In text encoders `value`, `scopes` and the largest dial count. Raises ValueError for what is no finite number or out
    of range.
    """

    value: float = 1.0
    _: dataclasses.KW_ONLY
    scopes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    start: float = 0.0
    end: float = 1.0
    schedule: Mapping[float, float] | Callable[[float], float] | None = None
    by: str = "step"
    mask: Any = None
    samples: Sequence[float] | None = None
    bands: Sequence[float] | None = None
    domains: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "value", number(self.value, "value"))
        for name in ("scopes", "domains"):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise TypeError(f"{name} must be a mapping of names to numbers, got {type(given).__name__}")
            set_(self, name, {key: number(value, f"{name}[{key!r}]") for key, value in given.items()})
        set_(self, "start", number(self.start, "start"))
        set_(self, "end", number(self.end, "end"))
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"start and end must be 0 <= start < end <= 1, got {self.start} and {self.end}")
        if self.by not in ("step", "sigma"):
            raise ValueError(f"by must be 'step' or 'sigma', got {self.by!r}")
        if self.by == "sigma" and (self.schedule is None or (self.start, self.end) != (0, 1)):
            raise ValueError("by='sigma' is for a schedule; start and end are parts of the steps")
        if isinstance(self.schedule, Mapping):
            if not self.schedule:
                raise ValueError("schedule is empty; leave it out for none")
            frames = {number(k, "schedule position"): number(v, f"schedule[{k!r}]") for k, v in self.schedule.items()}
            last = 1.0 if self.by == "step" else math.inf
            outside = [position for position in frames if not 0 <= position <= last]
            if outside:
                raise ValueError(f"schedule position {outside[0]} is outside of [0, {last}]")
            set_(self, "schedule", dict(sorted(frames.items())))
        elif self.schedule is not None and not callable(self.schedule):
            raise TypeError(f"schedule must be a mapping or a function, got {type(self.schedule).__name__}")
        for name in ("samples", "bands"):
            given = getattr(self, name)
            if given is not None:
                values = tuple(number(value, f"{name}[{i}]") for i, value in enumerate(given))
                set_(self, name, values)
                least = 1 if name == "samples" else 2
                if len(values) < least:
                    raise ValueError(f"{name} needs at least {least} numbers, got {len(values)}")
        if self.mask is not None:
            set_(self, "mask", as_mask(self.mask))

    @property
    def varies(self) -> bool:
        """Whether it depends on step, region or sample, so that no constant says it."""
        return self.scheduled or self.mask is not None or self.samples is not None

    @property
    def scheduled(self) -> bool:
        """Whether it depends on the denoising step."""
        return self.schedule is not None or (self.start, self.end) != (0, 1)

    @property
    def fixed(self) -> bool:
        """Whether it is one number at each projection, for all tokens, steps and samples."""
        return not self.varies and self.bands is None

    def at(self, component: str, path: str = "") -> float:
        """The constant part at one projection: `value` times the number of the scope that fits best."""
        return self.value * self.scope(component, path)

    def whole(self, component: str) -> float:
        """The constant part of what belongs to no domain alone: `at` times the largest dial."""
        return self.at(component) * max(map(abs, self.domains.values()), default=1.0)

    def dials(self, domains: Iterable[str]) -> dict[str, float]:
        """The dial of each of `domains`."""
        return {domain: self.domains.get(domain, 1.0) for domain in domains}

    def times(self, factor: float) -> AdapterWeight:
        """This weight with `value` times `factor`, sharing all else."""
        made = copy.copy(self)
        object.__setattr__(made, "value", self.value * factor)
        return made

    def scope(self, component: str, path: str = "") -> float:
        """The number of the scope that fits best, 1 if none."""
        best, found = 0, 1.0
        for key, factor in self.scopes.items():
            if key.count(".") + 1 >= best and matches(key, component, path):
                best, found = key.count(".") + 1, factor
        return found


def as_weight(given: Any, name: str) -> AdapterWeight:
    """The AdapterWeight that a number, a mapping of scopes or an AdapterWeight stands for. `name`: for errors."""
    if isinstance(given, AdapterWeight):
        return given
    if isinstance(given, Mapping):
        return AdapterWeight(scopes=given)
    try:
        return AdapterWeight(number(given, "value"))
    except ValueError:
        raise ValueError(f"the weight of adapter {name!r} must be a finite number, got {given!r}") from None


def check_scopes(weight: AdapterWeight, places: Iterable[tuple[str, str]]) -> None:
    """Raise ValueError for a scope that matches none of `places`, (component, path), with the nearest name."""
    places = list(places)
    for key in weight.scopes:
        if not any(matches(key, *place) for place in places):
            parts = {part for place in places for part in ".".join(place).split(".") if part and not part.isdigit()}
            raise ValueError(f"unknown scope {key!r} in adapter_weights, {nearest(key, parts)}")


def check_domains(weight: AdapterWeight, name: str, domains: Iterable[str]) -> None:
    """Raise ValueError for a dial of none of `domains`, those of adapter `name`, with the nearest name."""
    known = list(domains)
    for key in weight.domains:
        if not known:
            raise ValueError(f"adapter {name!r} has no domains, so no dial {key!r} either; give it a number")
        if key not in known:
            raise ValueError(f"unknown domain {key!r} of adapter {name!r}, {nearest(str(key), known)}")


def matches(key: str, component: str, path: str) -> bool:
    """Whether whole segments of `component.path` are `key`."""
    return f".{key}." in f".{component}.{path}."


def number(value: Any, name: str) -> float:
    """`value` as a float. Raises ValueError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def as_mask(mask: Any) -> Tensor:
    """A mask as a tensor (h, w) in fp32 with values in [0, 1]. Raises ValueError, TypeError for what is none."""
    if hasattr(mask, "convert"):
        grey = mask.convert("L")
        values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width) / 255
    elif hasattr(mask, "__array__"):
        values = torch.as_tensor(mask).detach().to("cpu", torch.float32).clone()
    else:
        raise TypeError(f"a mask must be a PIL image or an array (h, w), got {type(mask).__name__}")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"a mask must have the shape (h, w), got {tuple(values.shape)}")
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"a mask must have values in [0, 1], got {float(values.min())} to {float(values.max())}")
    return values
