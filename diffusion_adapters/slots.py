"""Room kept for adapters to come, so that loading, swapping and deleting them recompiles nothing.

A compiled forward holds for the shapes that it was traced with. With slots each projection has factors of one size,
filled up with zeros, whatever adapters act: a change is a write to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .adapter_set import AdapterSet
from .attach import adapter_sets, find_denoisers
from .blend import Blend
from .dials import members, spread_weights
from .linalg import dense_weight
from .plan import Member, Plan
from .projection import Projection
from .weight import AdapterWeight, as_weight


class Slot(Plan):
    """A plan of fixed size: y = linear(x) + (x Aᵀ ∘ w) Bᵀ + x Dᵀ, A (rank, in), B (out, rank), D (out, in) if `dense`.

    w (rank,) are the weights, read from the table of the blend; D has what is not low rank, times its weight.
    """

    def __init__(self, projection: Projection, blend: Blend, path: str, room: Room) -> None:
        super().__init__([], blend, path, projection.stream)
        self.projection, self.room, rank = projection, room, room.rank
        like = next((p for p in projection.base.parameters() if p.is_floating_point()), torch.empty(0))
        with torch.inference_mode(False):
            like = torch.empty(0, device="cpu" if like.is_meta else like.device, dtype=like.dtype)
            self.down = like.new_zeros(projection.in_features, rank)
            self.up = like.new_zeros(rank, projection.out_features)
            self.where = torch.full((rank,), room.adapters, device=like.device)
            self.delta = like.new_zeros(projection.in_features, projection.out_features) if room.dense else None

    def __call__(self, base: Any, x: Tensor, *args: Any, call: int = 0, **kwargs: Any) -> Tensor:
        y = base(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
        assert self.blend.slots is not None
        gains = self.blend.slots.to(y)[self.where.to(y.device)]
        total = torch.addmm(y.reshape(-1, y.shape[-1]), (rows @ self.down.to(y)) * gains, self.up.to(y))
        if self.delta is not None:
            total = torch.addmm(total, rows, self.delta.to(y))
        return total.view(y.shape)

    def reweigh(self, members: list[Member]) -> bool:
        """Write other adapters, or none, to the slot."""
        self.members = members
        self.low_rank = [m for m in members if m.adapter.factors() is not None]
        with torch.inference_mode(False), torch.no_grad():
            self.down.zero_()
            self.up.zero_()
            self.where.fill_(self.room.adapters)
            start = 0
            for member in self.low_rank:
                up, core, down = member.adapter.factors()  # type: ignore[misc]
                stop = start + len(down)
                self.down[:, start:stop] = down.t()
                self.up[start:stop] = (up * core * member.scope).t()
                self.where[start:stop] = self.blend.columns[member.name]
                start = stop
        self._fill_dense()
        return True

    def _fill_dense(self) -> None:
        others = [member for member in self.members if not is_low_rank(member)]
        if self.delta is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            self.delta.zero_()
            weight = dense_weight(self.projection.base) if others else None
            for member in others:
                assert weight is not None
                rest = member.adapter.delta_weight(weight)
                factors = member.adapter.low_rank()
                if factors is not None:
                    rest = rest - factors[0] @ factors[1]
                weight_here = self.blend.values[self.blend.columns[member.name]] * member.scope
                self.delta += (weight_here * rest.t()).to(self.delta)

    def update(self) -> None:
        """Take other weights: those of low-rank adapters are read from the blend."""
        if not all(map(is_low_rank, self.members)):
            self._fill_dense()

    def refresh(self, like: Tensor | None = None) -> None:
        if like is None and self.members:
            self.reweigh(self.members)


class Room:
    """The slots of one denoiser: how large they are, and whether adapters fit."""

    def __init__(self, rank: int, adapters: int, dense: bool) -> None:
        self.rank, self.adapters, self.dense = rank, adapters, dense

    def check(
        self, adapter_set: AdapterSet, active: Mapping[str, AdapterWeight], members: Mapping[str, list[Member]]
    ) -> None:
        """Raise ValueError, with nothing changed, for adapters or weights that the slots do not hold."""
        if len(active) > self.adapters:
            raise ValueError(f"{len(active)} adapters are active and slots hold {self.adapters}; reserve more adapters")
        varying = next((name for name, weight in active.items() if not weight.fixed), None)
        if varying is not None:
            raise ValueError(
                f"the weight of adapter {varying!r} depends on step, region, sample or band; slots take numbers and "
                "scopes: call release_slots() first"
            )
        for path, own in members.items():
            if path in adapter_set.outside:
                raise ValueError(f"{path}: slots are kept in attention; call release_slots() first")
            self._check_place(path, own)

    def _check_place(self, path: str, members: list[Member]) -> None:
        other = next((m.name for m in members if not is_low_rank(m)), None)
        if other is not None and not self.dense:
            raise ValueError(
                f"{path}: adapter {other!r} is not low rank; call reserve_slots(dense=True), which keeps a "
                "whole matrix for each projection"
            )
        if any(value.requires_grad for m in members for value in m.adapter.parameters()):
            raise ValueError(f"{path}: slots are for adapters that are not trained; call release_slots() first")
        ranks = [factors[2].shape[0] for factors in (m.adapter.factors() for m in members) if factors is not None]
        if sum(ranks) > self.rank:
            raise ValueError(
                f"{path}: the active adapters have rank {sum(ranks)} together, and the slots {self.rank}; "
                "call reserve_slots() with a larger rank"
            )


def reserve_slots(model: Any, rank: int = 64, adapters: int = 8, dense: bool = False) -> None:
    """Keep room on every attention projection for up to `adapters` adapters at once, whose ranks add up to `rank`.

    Call it before compiling. `dense`: also for families that are not low rank, at (out, in) numbers a projection.
    Weights are numbers or scopes then. Raises ValueError if what is active does not fit, and nothing is changed.
    """
    for value, name in ((rank, "rank"), (adapters, "adapters")):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    known = adapter_sets(model)
    for name, denoiser in find_denoisers(model).items():
        adapter_set = known.get(name) or AdapterSet(denoiser)
        if adapter_set.fused:
            raise RuntimeError("cannot reserve slots while adapters are fused; call unfuse_adapters() first")
        room = Room(rank, adapters, dense)
        weights = {n: as_weight(w, n) for n, w in adapter_set.weights.items() if adapter_set.enabled}
        weights = spread_weights(adapter_set, weights)
        room.check(adapter_set, weights, members(adapter_set, weights))
        device = next((p.device for p in denoiser.parameters() if not p.is_meta), torch.device("cpu"))
        with torch.inference_mode(False):
            adapter_set.blend.slots = torch.zeros(adapters + 1, device=device)
        for path, projection in adapter_set.projections().items():
            projection.plan = Slot(projection, adapter_set.blend, path, room)
        adapter_set.room = room
        adapter_set.plan(anew=True)


def release_slots(model: Any) -> None:
    """Give the room back; adapters act as they did."""
    for adapter_set in adapter_sets(model).values():
        for projection in adapter_set.projections().values():
            projection.plan = None
        adapter_set.blend.slots = None
        adapter_set.room = None
        adapter_set.plan(anew=True)


def is_low_rank(member: Member) -> bool:
    """Whether all of an adapter is in its factors."""
    return not member.adapter.transforms_input and not member.adapter.adds_output
