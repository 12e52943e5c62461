"""One pair of factors for the sum of what several adapters do to a projection, and how far it is from that sum."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .linalg import product_norm, truncated_svd
from .sources import Delta


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where an SVD is cut: at `rank`, and where `energy`, a share of ‖ΔW‖², is reached. Raises ValueError."""

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy must be greater than 0 and at most 1, got {self.energy}")

    def __call__(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A) of a matrix (out, in)."""
        return truncated_svd(delta, self.rank, 1.0 if self.energy is None else self.energy)[:2]


@dataclasses.dataclass(frozen=True)
class Stored:
    """B (out, rank), A (rank, in) in the dtype of a file; `error` = ‖BA − ΔW‖ of these very numbers, `norm` = ‖ΔW‖."""

    up: Tensor
    down: Tensor
    error: float
    norm: float


@dataclasses.dataclass(frozen=True)
class Factors:
    """B (out, rank), A (rank, in) in fp32, near ΔW. `wanted` gives ΔW where their product is not all of it."""

    up: Tensor
    down: Tensor
    wanted: Callable[[], Tensor] | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def store(self, dtype: torch.dtype, scale: float = 1.0) -> Stored:
        """In `dtype`, B times `scale`, by which a reader divides again."""
        up, down = self.up, self.down
        if dtype == torch.float16:  # whose small numbers are coarse: B and A of one size, by powers of two
            shift = torch.log2(down.norm(dim=1) / (up.norm(dim=0) * scale)).div(2).round()
            balance = torch.exp2(shift.where(shift.isfinite(), torch.zeros_like(shift)))
            up, down = up * balance, down / balance[:, None]
        own = (up * scale).to(dtype), down.to(dtype)
        read_up, read_down = own[0].float() / scale, own[1].float()
        if self.wanted is not None:
            delta = self.wanted()
            return Stored(*own, float((read_up @ read_down - delta).norm()), float(delta.norm()))
        error = 0.0
        if not (torch.equal(read_up, up) and torch.equal(read_down, down)):
            error = product_norm(torch.cat((read_up - up, up), dim=1), torch.cat((read_down, read_down - down)))
        return Stored(*own, error, product_norm(up, down))


def reduce_sum(deltas: Sequence[Delta], cut: Cut) -> Factors:
    """Factors of Σ w ΔW: low-rank parts side by side, as they are; the sum of all else by SVD."""
    pairs = [(delta.factors[0].float() * delta.weight, delta.factors[1].float()) for delta in deltas if delta.factors]
    others = [delta for delta in deltas if delta.dense is not None]
    if not others:
        return Factors(*side_by_side(pairs))
    rest = sum(
        delta.weight * (delta.full() if delta.factors is None else delta.full() - torch.mm(*delta.factors))
        for delta in others
    )
    assert isinstance(rest, Tensor)
    return Factors(*side_by_side([*pairs, cut(rest)]), functools.partial(weighted_sum, deltas))


def weighted_sum(deltas: Sequence[Delta]) -> Tensor:
    """Σ w ΔW (out, in)."""
    total = deltas[0].weight * deltas[0].full()
    for delta in deltas[1:]:
        total += delta.weight * delta.full()
    return total


@dataclasses.dataclass(frozen=True)
class Loss:
    """‖BA − ΔW‖ / ‖ΔW‖ over all projections, and at the worst one."""

    relative_error: float
    worst_error: float
    worst_place: str

    @classmethod
    def of(cls, found: Mapping[str, Stored]) -> Loss:
        """From what is stored of each place."""
        lost, whole = math.hypot(*(f.error for f in found.values())), math.hypot(*(f.norm for f in found.values()))
        ratios = {place: f.error / f.norm if f.norm else 0.0 for place, f in found.items()}
        worst = max(ratios, key=ratios.__getitem__)
        return cls(lost / whole if whole else 0.0, ratios[worst], worst)

    def __str__(self) -> str:
        return f"relative error {self.relative_error:.3g} (worst {self.worst_error:.3g} at {self.worst_place})"


def side_by_side(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(B, A) of the sum of the products of pairs."""
    return torch.cat([up for up, _ in pairs], dim=1), torch.cat([down for _, down in pairs])
