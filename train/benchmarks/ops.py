"""Operations of a UNet forward: exact, and the same on every machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from train.benchmarks import models

_FREE = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split", "unbind"}
_FREE |= {"chunk", "split_with_sizes", "unsqueeze", "squeeze", "alias", "detach", "as_strided", "reshape", "diagonal"}
_FREE |= {"lift_fresh"}


class OpCounter(TorchDispatchMode):
    """Counts the operations that reach the dispatcher; views are free, the rest stands for kernel launches."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _FREE and not self.paused:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def products(self) -> int:
        """Matrix products among them, attention apart."""
        return sum(self.counts[name] for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm"))


class _AttentionAsOne(TorchFunctionMode):
    """Counts attention as the one kernel that it is on a device; meta tensors would take it apart."""

    def __init__(self, counter: OpCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.counter.counts["scaled_dot_product_attention"] += 1
        self.counter.paused = True
        try:
            result = func(*args, **(kwargs or {}))
            # Laid out as kernels do, tokens before heads: else bringing it there would be counted.
            return result.transpose(1, 2).contiguous().transpose(1, 2) if result.is_meta else result
        finally:
            self.counter.paused = False


def count_ops(unet: nn.Module, batch: int = 2, side: int = 8) -> OpCounter:
    """Operations of one forward of a UNet at `side` latents: the same at any size."""
    with torch.no_grad():
        arguments, extra = models.inputs(unet, batch, side)
        unet(*arguments, **extra)  # prepares what is kept between forwards
        with OpCounter() as counter, _AttentionAsOne(counter):
            unet(*arguments, **extra)
    return counter
