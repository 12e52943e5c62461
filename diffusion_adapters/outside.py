"""Layers outside attention processors that carry an adapter: linears and convolutions, adapted by a forward hook.

A convolution is a linear map of patches: W (out, in · kernel height · kernel width).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layout import outside_stream
from .linalg import matrix
from .plan import Plan
from .projection import Projection
from .site import is_projection


class Outside(Projection):
    """Stands for one such layer. Its hook is on the layer while a plan is."""

    def __init__(self, modules: dict[str, nn.Module], key: str, stream: str) -> None:
        super().__init__(modules, key)
        self.stream = stream
        self._masked = False
        self._hooked: nn.Module | None = None
        self._hook: Any = None

    @property
    def in_features(self) -> int:
        return layer_shape(self.base)[1]

    @property
    def out_features(self) -> int:
        return layer_shape(self.base)[0]

    def wire(self, masked: Collection[str] = ()) -> None:
        """Put the hook on the layer that is there now if there is a plan, else take it away.

        `masked`: names of the adapters that act in a region.
        """
        self._masked = self.plan is not None and any(member.name in masked for member in self.plan.members)
        wanted = None if self.plan is None else self.base
        if wanted is self._hooked:
            return
        if self._hook is not None:
            self._hook.remove()
        self._hooked, self._hook = wanted, wanted.register_forward_hook(self.adapt) if wanted is not None else None

    def adapt(self, module: Any, args: Any, output: Tensor) -> Tensor | None:
        """The output of the layer with what its plan adds."""
        plan, x = self.plan, args[0]
        if plan is None:
            return None
        if not torch.compiler.is_compiling():
            self.called = True
        if not is_convolution(module):
            return self._adapted(plan, x, output, module.forward)
        patches = _patches(module, x)
        rows = output.flatten(2).transpose(1, 2)
        adapted = self._adapted(plan, patches, rows, lambda z: F.linear(z, matrix(module.weight), module.bias))
        return adapted.transpose(1, 2).reshape(output.shape)

    def _adapted(self, plan: Plan, x: Tensor, y: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        regions = plan.blend.regions
        if regions is None or not self._masked:
            return plan(lambda z: y if z is x else forward(z), x)

        def run(call: int) -> Tensor:
            return plan(lambda z: y.clone() if z is x else forward(z), x, call=call)  # a plan may write to it

        return regions.compose(plan.path, self.stream, plan.blend.layout, run)


def is_convolution(module: object) -> bool:
    """Whether `module` is a two-dimensional convolution of all channels with all."""
    return isinstance(module, nn.Conv2d) and module.groups == 1


def layer_shape(module: Any) -> tuple[int, int]:
    """(out, in) of a linear or a convolution, in counting kernel places."""
    if not is_convolution(module):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels * module.kernel_size[0] * module.kernel_size[1]


def find_outside(denoiser: nn.Module, paths: Iterable[str]) -> dict[str, Outside]:
    """A stand-in for each of the layers. Raises ValueError for a path that no linear or convolution has."""
    found = {}
    for path in paths:
        parent, _, key = path.rpartition(".")
        try:
            module, owner = denoiser.get_submodule(path), denoiser.get_submodule(parent)
        except AttributeError:
            raise ValueError(f"{path}: there is no such layer in this {type(denoiser).__name__}") from None
        if not is_projection(module) and not is_convolution(module):
            raise ValueError(f"{path}: a {type(module).__name__} can carry no adapter, only a linear or a Conv2d")
        found[path] = Outside(owner._modules, key, outside_stream(type(denoiser).__name__, path))  # type: ignore[arg-type]
    return found


def _patches(conv: Any, x: Tensor) -> Tensor:
    """The patches that a convolution sees, (batch, channels, height, width) -> (batch, places, in)."""
    padding = conv.padding
    if conv.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode), (0, 0)
    if conv.kernel_size == (1, 1) and padding == (0, 0):
        return x[..., :: conv.stride[0], :: conv.stride[1]].flatten(2).transpose(1, 2)
    return F.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride).transpose(1, 2)
