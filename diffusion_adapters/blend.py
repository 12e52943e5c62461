"""What the active adapters of a denoiser are multiplied by in the forward that is running."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .bands import filter_bands
from .layout import Layout
from .regions import Regions
from .schedule import Schedules, clock
from .weight import AdapterWeight


class Blend:
    """The weights of the active adapters: a column each in a table of gains, (calls, batch, adapters).

    Calls are those of `Regions`, one without masks; batch is 1 unless a weight has `samples`. While all weights are
    numbers it is `fixed`, and an eager forward has them in its factors already. What depends on the step is multiplied
    in before each forward. All changes are made in place, so that a compiled forward is not compiled again.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.kind = type(denoiser).__name__
        self.scale = float(getattr(getattr(denoiser, "config", None), "timestep_scale", 1.0) or 1.0)
        self.layout = Layout(denoiser)
        self.columns: dict[str, int] = {}
        self.values: list[float] = []
        self.version = 0
        self.fixed = True
        self.bands: dict[str, Tensor] = {}
        self.regions: Regions | None = None
        self.owner: Any = None  # the pipeline whose scheduler tells the step
        self.slots: Tensor | None = None  # of each column its weight, and zeros up to the room that is kept
        self._table = torch.ones(1, 1, 0)
        self._schedules: Schedules | None = None
        self._gains: Tensor | None = None
        self._spread: dict[Any, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None, "_spread": {}}  # a copy of a denoiser is in no pipeline yet

    @property
    def calls(self) -> int:
        """How many ways an attention is evaluated in: one without masks, and one for each mask."""
        return len(self._table)

    @property
    def reads_forward(self) -> bool:
        """Whether the arguments of the denoiser's forward are needed."""
        return self._schedules is not None or self.regions is not None or bool(self.bands)

    def take(self, weights: Mapping[str, AdapterWeight], device: torch.device, owner: Any = None) -> None:
        """Take other weights. Raises ValueError, with nothing changed, for what does not fit together."""
        given = list(weights.values())
        lengths = {name: len(weight.samples) for name, weight in weights.items() if weight.samples is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"samples must be one number for each image of the batch, got {lengths}")
        scheduled = any(weight.scheduled for weight in given)
        if scheduled and getattr(owner, "scheduler", None) is None:
            name = next(name for name, weight in weights.items() if weight.scheduled)
            raise ValueError(
                f"the weight of adapter {name!r} depends on the denoising step, which the scheduler of a pipeline "
                "knows: pass the pipeline to set_adapters(), not its denoiser"
            )
        with torch.inference_mode(False):
            schedules = Schedules(given) if scheduled else None
            distinct, regions_of = _distinct([weight.mask for weight in given])
            regions = Regions(distinct) if distinct else None
            rows = [[w.value * s for w, s in zip(given, row, strict=True)] for row in _samples(given)]
            calls = [[float(region in (0, call)) for region in regions_of] for call in range(len(distinct) + 1)]
            table = torch.tensor(calls)[:, None] * torch.tensor(rows)
            bands = {name: torch.tensor(w.bands) for name, w in weights.items() if w.bands is not None}
        self.columns = {name: i for i, name in enumerate(weights)}
        self.values = [weight.value for weight in given]
        self.fixed = not any(weight.varies for weight in given)
        self.regions, self.owner = regions, owner if scheduled else None
        if {n: b.shape for n, b in bands.items()} == {n: b.shape for n, b in self.bands.items()}:
            for name, gains in bands.items():
                self.bands[name].copy_(gains)
        else:
            self.bands = bands
        self._schedules = _in_place(self._schedules, schedules)
        if self._table.shape == table.shape and self._table.device == device:
            self._table.copy_(table)
        else:
            self._table = table.to(device)
        if self.slots is not None:
            self.slots.zero_()[: len(self.values)] = torch.tensor(self.values)
        self._gains = None
        self._spread = {}
        self.version += 1

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward of the denoiser: see where in the image and in the run it is."""
        if not self.reads_forward:
            return
        if self.regions is not None or self.bands:
            self.layout.read(args, kwargs)
        if self._schedules is None:
            return
        timestep = self.layout.argument(self.layout.clock, args, kwargs)
        step, sigma, off = clock(self.owner.scheduler, timestep, self.kind, self.scale)
        if step.device.type == "cpu" and not torch.compiler.is_compiling() and float(off) > 5:
            raise RuntimeError(
                f"the timestep {timestep} is none of the scheduler that adapter weights are scheduled by; "
                "call set_adapters() with the pipeline that runs"
            )
        self._gains = self._table.to(step.device) * self._schedules(step, sigma)
        if not torch.compiler.is_compiling():
            self._spread = {}

    def gains(self, call: int, like: Tensor) -> Tensor:
        """Gains (batch, adapters) in a call, on the device of `like`."""
        table = self._table if self._gains is None else self._gains
        return table[call].to(like.device)

    def spread(self, call: int, columns: Tensor, key: tuple[Any, ...], like: Tensor) -> Tensor:
        """Gains (batch, R) of the adapters `columns` (R,), kept for all projections of one `key` in a forward."""
        if torch.compiler.is_compiling():
            return self.gains(call, like)[:, columns.to(like.device)].to(like.dtype)
        key = (key, call, like.dtype, like.device)
        found = self._spread.get(key)
        if found is None:
            found = self._spread[key] = self.gains(call, like)[:, columns.to(like.device)].to(like.dtype)
        return found

    def filtered(self, path: str, stream: str, name: str, values: Tensor) -> Tensor:
        """What adapter `name` adds to the tokens of a projection, (batch, tokens, channels), by its gains of bands."""
        image = self.layout.image(path, values.shape[1], stream)
        if image is None:
            return values
        place, grid, halved = image
        own = filter_bands(values[:, place], grid, self.bands[name].to(values), halved)
        if own.shape == values.shape:
            return own
        return torch.cat((values[:, : place.start or 0], own, values[:, place.stop :]), dim=1)


def per_sample(gains: Tensor, x: Tensor) -> Tensor:
    """Gains (batch, n) for `x` (b, ..., n or channels), b a multiple of batch: once more for each kind of guidance."""
    if len(gains) == 1:
        return gains[0]
    if x.ndim < 3 or x.shape[0] % len(gains):
        raise RuntimeError(
            f"samples has {len(gains)} numbers, which does not divide the batch of {x.shape[0]} in the denoiser; "
            "give one for each image that the pipeline makes at once"
        )
    return gains.repeat(x.shape[0] // len(gains), 1).reshape(x.shape[0], *[1] * (x.ndim - 2), -1)


def _samples(weights: list[AdapterWeight]) -> list[list[float]]:
    size = max((len(w.samples) for w in weights if w.samples is not None), default=1)
    return [[1.0 if w.samples is None else w.samples[i] for w in weights] for i in range(size)]


def _distinct(masks: list[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    """The different masks, and for each given one its number among them from 1 on, 0 for none."""
    found: list[Tensor] = []
    numbers = []
    for mask in masks:
        same = [i for i, other in enumerate(found) if mask is not None and torch.equal(mask, other)]
        if mask is not None and not same:
            found.append(mask)
        numbers.append(0 if mask is None else same[0] + 1 if same else len(found))
    return found, numbers


def _in_place(old: Schedules | None, new: Schedules | None) -> Schedules | None:
    """`new`, in the tensors of `old` if they have the same sizes."""
    if old is None or new is None or old.positions.shape != new.positions.shape:
        return new
    for name, value in vars(new).items():
        getattr(old, name).copy_(value)
    return old
