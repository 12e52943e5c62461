"""One product for the projections of an attention that read the same input: query, key and value."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


class SharedInput:
    """The factors Aᵀ of several plans side by side, so that x is multiplied by all of them at once.

    The first plan that is called makes the product, the others take their part of it, each once, and only of the very
    same x: anything else is multiplied anew. So it needs not be known, only likely, that they read the same.
    """

    def __init__(self, plans: list[Any]) -> None:
        self.plans = plans
        self._parts: list[Tensor] = []
        self._joined = torch.empty(0)
        self._last: tuple[Any, int, Tensor, set[int]] | None = None

    def inner(self, plan: Any, x: Tensor, like: Tensor) -> Tensor:
        """x Aᵀ of one of the plans, (tokens, rank), in the dtype of `like`."""
        own = next(i for i, other in enumerate(self.plans) if other is plan)
        last, version = self._last, -1 if x.is_inference() else x._version
        if (
            last is None
            or last[0]() is not x
            or last[1] != version
            or own not in last[3]
            or last[2].dtype != like.dtype
        ):
            product = x.reshape(-1, x.shape[-1]).to(like.dtype) @ self._side_by_side(like)
            last = (weakref.ref(x), version, product, set(range(len(self.plans))))
        last[3].discard(own)
        self._last = last if last[3] else None
        start = sum(part.shape[1] for part in self._parts[:own])
        return last[2][:, start : start + self._parts[own].shape[1]]

    def forget(self) -> None:
        """The factors of a plan have changed."""
        self._last = None

    def _side_by_side(self, like: Tensor) -> Tensor:
        """(in, ΣR); the plans keep views of it, so that what they change in place is changed here."""
        for plan in self.plans:
            plan.refresh(like)
        parts = [plan.kept[0] for plan in self.plans]
        if len(parts) != len(self._parts) or any(a is not b for a, b in zip(parts, self._parts, strict=True)):
            with torch.inference_mode(False), torch.no_grad():
                self._joined = torch.cat(parts, dim=1)
                self._parts = list(self._joined.split([part.shape[1] for part in parts], dim=1))
            for plan, part in zip(self.plans, self._parts, strict=True):
                plan.kept = (part, plan.kept[1])
        return self._joined

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # a weak reference cannot be copied
