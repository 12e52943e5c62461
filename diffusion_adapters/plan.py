"""What one projection adds to its output: prepared when adapters change, so that the forward decides nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .adapter import Adapter
from .blend import Blend, per_sample
from .shared import SharedInput


class _Steps:
    """Steps of all optimizers so far: fused ones write to parameters past the versions that autograd counts."""

    taken = 0

    def __call__(self, *_: Any) -> None:
        _Steps.taken += 1


register_optimizer_step_post_hook(_Steps())


@dataclasses.dataclass
class Member:
    """An adapter of one projection: its name, and the number of its weight's scope here."""

    adapter: Adapter
    name: str
    scope: float = 1.0


class Plan:
    """The active adapters of one projection, sorted by how they act.

    y = linear(x + Σ w D(x)) + x (Σ w B A)ᵀ + Σ w forward(x)

    All low-rank adapters are concatenated to one pair of factors: two matrix products however many they are. While no
    gradient is asked for, the pair is kept, and made again when one of its values was changed in place, or an optimizer
    has taken a step. Weights that are numbers are in it; what depends on step, sample or region is multiplied between
    the two products, on the few values of inner width, and so are the gains of frequency bands.
    """

    def __init__(self, members: list[Member], blend: Blend, path: str = "", stream: str = "image") -> None:
        self.members = members
        self.blend, self.path, self.stream = blend, path, stream
        self.inputs = [i for i, member in enumerate(members) if member.adapter.transforms_input]
        self.outputs = [i for i, member in enumerate(members) if member.adapter.adds_output]
        widths = [(member, inner_width(member.adapter)) for member in members]
        self.low_rank = [member for member, width in widths if width is not None]
        self._widths = [width for _, width in widths if width is not None]
        self._values = [value for member in self.low_rank for value in member.adapter.parameters()]
        self._seen: tuple[int, ...] = ()
        self.kept: tuple[Tensor, Tensor] | None = None  # Aᵀ, which may be part of `shared`, and Bᵀ
        self._folded: tuple[int, Tensor] | None = None  # of which version of the blend
        self.shared: SharedInput | None = None
        self._lay_out()
        self.refresh()

    def _lay_out(self) -> None:
        columns = [self.blend.columns[member.name] for member in self.low_rank]
        self._layout = tuple(zip(columns, self._widths, strict=True))
        with torch.inference_mode(False):
            self._columns = torch.tensor([column for column, width in self._layout for _ in range(width)])
            self.scopes = torch.tensor([member.scope for member in self.members])
        self._banded = any(member.name in self.blend.bands for member in self.low_rank)

    def reweigh(self, members: list[Member]) -> bool:
        """Take other scopes and columns of the same adapters, in place. False for other adapters."""
        if [m.adapter for m in members] != [m.adapter for m in self.members]:
            return False
        for own, other in zip(self.members, members, strict=True):
            own.name, own.scope = other.name, other.scope
        self._lay_out()
        self.refresh()
        return True

    @property
    def trains(self) -> bool:
        """Whether any of its adapters is being trained."""
        return any(value.requires_grad for member in self.members for value in member.adapter.parameters())

    def __call__(self, base: Any, x: Tensor, *args: Any, call: int = 0, **kwargs: Any) -> Tensor:
        z = x
        for i in self.inputs:
            z = self._plus(z, i, self.members[i].adapter.input_delta(x), call)
        y = base(z, *args, **kwargs)
        parts = [(i, self.members[i].adapter(x, y if z is x else base(x), base)) for i in self.outputs]
        if self.low_rank:
            y = self._add_low_rank(x, y, call)
        for i, part in parts:
            y = self._plus(y, i, part, call)
        return y

    def _plus(self, total: Tensor, index: int, part: Tensor, call: int) -> Tensor:
        """total + w part of a member, with the bands of the part by their gains."""
        member = self.members[index]
        if member.name in self.blend.bands:
            part = self.blend.filtered(self.path, self.stream, member.name, part)
        column = self.blend.columns[member.name]
        if self.blend.fixed and not torch.compiler.is_compiling():
            return torch.add(total, part.to(total.dtype), alpha=self.blend.values[column] * member.scope)
        gain = self.blend.gains(call, total)[:, column, None] * self.scopes[index]
        return torch.addcmul(total, per_sample(gain, total).to(total.dtype), part.to(total.dtype))

    def _add_low_rank(self, x: Tensor, y: Tensor, call: int) -> Tensor:
        down, core, up = self._factors(y, call)
        if self.shared is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            inner = x.reshape(-1, x.shape[-1]).to(y.dtype) @ down
        else:
            inner = self.shared.inner(self, x, y)
        if self._banded:
            rows = inner.view(*x.shape[:-1], -1)
            parts = list(rows.split([width for _, width in self._layout], dim=-1))
            for i, (member, part) in enumerate(zip(self.low_rank, parts, strict=True)):
                if member.name in self.blend.bands:
                    parts[i] = self.blend.filtered(self.path, self.stream, member.name, part)
            inner = torch.cat(parts, dim=-1).flatten(0, -2)
        if isinstance(core, Tensor) and core.ndim == 2:
            inner = (inner.view(*x.shape[:-1], -1) * per_sample(core, x)).flatten(0, -2)
        elif core is not None:
            inner = inner * core
        overwrites = not torch.compiler.is_compiling() and not torch.is_grad_enabled() and y.is_contiguous()
        if overwrites and x.untyped_storage()._cdata != y.untyped_storage()._cdata:
            y.view(-1, y.shape[-1]).addmm_(inner, up)
            return y
        return torch.addmm(y.reshape(-1, y.shape[-1]), inner, up).view(y.shape)

    def _factors(self, y: Tensor, call: int) -> tuple[Tensor, Tensor | float | None, Tensor]:
        """Aᵀ (in, R), what is multiplied after it, (R,) or (batch, R) or None, and Bᵀ (R, out), as `y` is."""
        compiling = torch.compiler.is_compiling()
        fixed = self.blend.fixed and not compiling
        if (compiling or torch.is_grad_enabled()) and any(value.requires_grad for value in self._values):
            down, core, up = self._joined(y, weighted=fixed)
            return down, core if fixed else core * self.blend.spread(call, self._columns, self._layout, y), up
        if not compiling:
            self.refresh(y)
        assert self.kept is not None
        down, up = self.kept
        if fixed:
            return down.to(y), None, self._fold().to(y)
        gains = self.blend.spread(call, self._columns, self._layout, y)
        return down.to(y), gains[0] if len(gains) == 1 else gains, up.to(y)

    def _fold(self) -> Tensor:
        """Bᵀ times the weights, made when they change."""
        assert self.kept is not None
        folded, version, up = self._folded, self.blend.version, self.kept[1]
        if folded is None or folded[0] != version:
            values = [self.blend.values[column] for column, _ in self._layout]
            if any(value != 1 for value in values):
                with torch.inference_mode(False), torch.no_grad():
                    parts = up.split([width for _, width in self._layout])
                    up = torch.cat([part * value for part, value in zip(parts, values, strict=True)])
            folded = self._folded = (version, up)  # at once: other threads may be here
        return folded[1]

    def _joined(self, like: Tensor, weighted: bool = False) -> tuple[Tensor, Tensor | float, Tensor]:
        ups, cores, downs = [], [], []
        for member in self.low_rank:
            up, core, down = member.adapter.factors()  # type: ignore[misc]
            ups.append(up.to(like))
            downs.append(down.to(like))
            weight = member.scope
            if weighted:
                weight *= self.blend.values[self.blend.columns[member.name]]
            cores.append(core * weight if weight != 1 else core)
        if len(ups) == 1:
            core = cores[0]
            return downs[0].t(), core.to(like) if isinstance(core, Tensor) else core, ups[0].t()
        full = [
            core.to(like) if isinstance(core, Tensor) else like.new_full((len(down),), core)
            for core, down in zip(cores, downs, strict=True)
        ]
        return torch.cat(downs).t(), torch.cat(full), torch.cat(ups, dim=1).t()

    def update(self) -> None:
        """`refresh` if a change shows, in the dtype and on the device of what is kept."""
        if self.kept is not None:
            self.refresh(self.kept[0])

    def refresh(self, like: Tensor | None = None) -> None:
        """Bring the kept factors up to date; in place where they stay the same size, so that nothing is recompiled.

        `like`: a tensor of the dtype and device to keep them in. Without one they are made again even if nothing
        shows a change (a write to `.data` does not).
        """
        if not self.low_rank:
            return
        kept = self.kept
        forced = like is None
        if like is None:  # of a blank denoiser some are without numbers, and then so are the factors
            like = kept[0] if kept is not None else max(self._values, key=lambda value: value.is_meta)
        fits = kept is not None and kept[0].dtype == like.dtype and kept[0].device == like.device
        seen = (_Steps.taken, *(value._version for value in self._values))
        if fits and seen == self._seen and not forced:
            return
        with torch.inference_mode(False), torch.no_grad():  # leaving inference mode turns gradients on
            down, core, up = self._joined(like)
            up = (core[:, None] if isinstance(core, Tensor) else core) * up
            if fits and kept is not None and kept[0].shape == down.shape:
                kept[0].copy_(down)
                kept[1].copy_(up)
            else:
                self.kept = (down.contiguous(), up.contiguous())
        self._folded = None
        self._seen = seen
        if self.shared is not None:
            self.shared.forget()


def inner_width(adapter: Adapter) -> int | None:
    """The rank of the factors of an adapter; None if it has none."""
    factors = None if type(adapter).factors is Adapter.factors else adapter.factors()
    return None if factors is None else factors[2].shape[0]
