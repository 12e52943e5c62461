"""What one projection adds to its output: prepared when adapters change, so that the forward decides nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .adapter import Adapter


class _Steps:
    """Steps of all optimizers so far: fused ones write to parameters past the versions that autograd counts."""

    taken = 0

    def __call__(self, *_: Any) -> None:
        _Steps.taken += 1


register_optimizer_step_post_hook(_Steps())


class Plan:
    """The active adapters of one projection, each with its weight, sorted by how they act.

    y = linear(x + Σ w D(x)) + x (Σ w B A)ᵀ + Σ w forward(x)

    All low-rank adapters are concatenated to one pair of factors: two matrix products however many they are. While no
    gradient is asked for, the pair is kept, and made again when one of its values was changed in place, or an optimizer
    has taken a step.
    """

    def __init__(self, members: list[tuple[Adapter, float]]) -> None:
        self.adapters = [adapter for adapter, _ in members]
        with torch.inference_mode(False):
            self.weights = [torch.tensor(weight) for _, weight in members]
        weighted = list(zip(self.adapters, self.weights, strict=True))
        self.inputs = [(adapter, weight) for adapter, weight in weighted if adapter.transforms_input]
        self.outputs = [(adapter, weight) for adapter, weight in weighted if adapter.adds_output]
        self.low_rank = [(adapter, weight) for adapter, weight in weighted if has_factors(adapter)]
        self._values = [value for adapter, _ in self.low_rank for value in adapter.parameters()]
        self._seen: tuple[int, ...] = ()
        self._kept: tuple[Tensor, Tensor] | None = None
        self.refresh()

    def reweigh(self, members: list[tuple[Adapter, float]]) -> bool:
        """Take other weights of the same adapters, in place: nothing is recompiled. False for other adapters."""
        if [adapter for adapter, _ in members] != self.adapters:
            return False
        for own, (_, weight) in zip(self.weights, members, strict=True):
            own.fill_(weight)
        self.refresh()
        return True

    @property
    def trains(self) -> bool:
        """Whether any of its adapters is being trained."""
        return any(value.requires_grad for adapter in self.adapters for value in adapter.parameters())

    def __call__(self, base: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        z = x
        for adapter, weight in self.inputs:
            z = torch.addcmul(z, weight.to(x), adapter.input_delta(x))
        y = base(z, *args, **kwargs)
        added = [weight.to(y.dtype) * adapter(x, y if z is x else base(x), base) for adapter, weight in self.outputs]
        if self.low_rank:
            y = self._add_low_rank(x, y)
        for part in added:
            y = y + part.to(y.dtype)
        return y

    def _add_low_rank(self, x: Tensor, y: Tensor) -> Tensor:
        down, core, up = self._factors(y)
        inner = x.reshape(-1, x.shape[-1]).to(y.dtype) @ down
        if core is not None:
            inner = inner * core
        overwrites = not torch.compiler.is_compiling() and not torch.is_grad_enabled() and y.is_contiguous()
        if overwrites and x.untyped_storage()._cdata != y.untyped_storage()._cdata:
            y.view(-1, y.shape[-1]).addmm_(inner, up)
            return y
        return torch.addmm(y.reshape(-1, y.shape[-1]), inner, up).view(y.shape)

    def _factors(self, y: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Aᵀ (in, R), weighted c (R,) and Bᵀ (R, out) of all low-rank adapters, in the dtype and on the device of `y`.

        Kept factors have c in Bᵀ, and None for it.
        """
        compiling = torch.compiler.is_compiling()
        if (compiling or torch.is_grad_enabled()) and any(value.requires_grad for value in self._values):
            return self._joined(y)
        if not compiling:
            self.refresh(y)
        assert self._kept is not None
        return self._kept[0].to(y), None, self._kept[1].to(y)

    def _joined(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ups, cores, downs = [], [], []
        for adapter, weight in self.low_rank:
            up, core, down = adapter.factors()  # type: ignore[misc]
            ups.append(up.to(like))
            downs.append(down.to(like))
            cores.append((weight.to(like.device) * core).to(like.dtype))
        if len(ups) == 1:
            return downs[0].t(), cores[0], ups[0].t()
        cores = [core.expand(len(down)) for core, down in zip(cores, downs, strict=True)]
        return torch.cat(downs).t(), torch.cat(cores), torch.cat(ups, dim=1).t()

    def refresh(self, like: Tensor | None = None) -> None:
        """Bring the kept factors up to date; in place where they stay the same size, so that nothing is recompiled.

        `like`: a tensor of the dtype and device to keep them in. Without one they are made again even if nothing
        shows a change (a write to `.data` does not).
        """
        if not self.low_rank:
            return
        kept = self._kept
        forced = like is None
        like = like if like is not None else self._values[0] if kept is None else kept[0]
        fits = kept is not None and kept[0].dtype == like.dtype and kept[0].device == like.device
        seen = (_Steps.taken, *(value._version for value in self._values))
        if fits and seen == self._seen and not forced:
            return
        with torch.inference_mode(False), torch.no_grad():  # leaving inference mode turns gradients on
            down, core, up = self._joined(like)
            up = core[..., None] * up
            if fits and kept is not None and kept[0].shape == down.shape:
                kept[0].copy_(down)
                kept[1].copy_(up)
            else:
                self._kept = (down.contiguous(), up.contiguous())
        self._seen = seen


def has_factors(adapter: Adapter) -> bool:
    """Whether the adapter has a low-rank part."""
    return type(adapter).factors is not Adapter.factors and adapter.factors() is not None
