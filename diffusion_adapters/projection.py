"""What stands for a linear projection inside a processor: the projection itself, then what its plan adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layout import IMAGE
from .plan import Plan


class Projection:
    """Stands for one linear projection inside a processor: the projection itself, then what its plan adds."""

    stream = IMAGE
    """What its tokens are, see `layout`."""

    def __init__(self, modules: dict[str, nn.Module], key: str) -> None:
        self._modules = modules
        self._key = key
        self.plan: Plan | None = None
        self.called = False
        self.calls: list[ProjectionCall] = []

    @property
    def base(self) -> Any:
        """The module that is there now: PEFT and quantization replace it."""
        return self._modules[self._key]

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def __call__(self, x: Tensor, *args: Any, call: int = 0, **kwargs: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            self.called = True
        if self.plan is None:
            return self.base(x, *args, **kwargs)
        return self.plan(self.base, x, *args, call=call, **kwargs)

    def in_call(self, call: int) -> Projection | ProjectionCall:
        """What stands for it in one call of `Regions`."""
        while len(self.calls) < call:
            self.calls.append(ProjectionCall(self, len(self.calls) + 1))
        return self.calls[call - 1] if call else self


class ProjectionCall:
    """A projection in one call of `Regions`: with the adapters of its region."""

    def __init__(self, projection: Projection, call: int) -> None:
        self.projection = projection
        self.call = call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "projection":
            raise AttributeError(name)
        return getattr(self.projection, name)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.projection(x, *args, call=self.call, **kwargs)


class FusedProjection:
    """Stands for `to_qkv` and its like: evaluates the parts one by one while one of them has an adapter at work."""

    def __init__(self, base: Any, parts: list[Projection | ProjectionCall]) -> None:
        self.base = base
        self.parts = parts

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if all(part.plan is None for part in self.parts):
            return self.base(x, *args, **kwargs)
        return torch.cat([part(x, *args, **kwargs) for part in self.parts], dim=-1)
