"""Operations of an SD1.5 UNet forward: bare, with our LoRA, with PEFT's; exact, and the same on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_adapters import AdapterSet, add_adapter, set_adapters
from diffusion_adapters.options import argument_parser
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
            return func(*args, **(kwargs or {}))
        finally:
            self.counter.paused = False


def count_ops(unet: nn.Module) -> OpCounter:
    """Operations of one forward at 512 pixels, batch 1, of a UNet on the meta device."""
    with torch.no_grad(), torch.device("meta"):
        arguments, extra = models.inputs(unet, 1)
        unet(*arguments, **extra)  # prepares what is kept between forwards
        with OpCounter() as counter, _AttentionAsOne(counter):
            unet(*arguments, **extra)
    return counter


def with_adapters(unet: nn.Module, count: int, family: str = "lora", **options: Any) -> AdapterSet:
    """Attach `count` adapters, all active with weight 0.7."""
    for i in range(count):
        adapter_set = add_adapter(unet, f"a{i}", family, **options)
    set_adapters(unet, [f"a{i}" for i in range(count)], 0.7)
    return adapter_set


def with_peft(unet: Any, count: int, rank: int) -> None:
    """The same with PEFT's LoRA."""
    from peft import LoraConfig

    for i in range(count):
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        unet.add_adapter(config, adapter_name=f"a{i}")
    unet.set_adapters([f"a{i}" for i in range(count)], [0.7] * count)


def ops(counts: Sequence[int] = (1, 4), rank: int = 4) -> dict[str, OpCounter]:
    """Row -> operations of one SD1.5 forward: bare, then ours and PEFT's with each number of LoRA adapters."""
    rows = {"bare": count_ops(models.unet("sd15", "meta"))}
    for count in counts:
        unet = models.unet("sd15", "meta")
        with_adapters(unet, count, rank=rank)
        rows[f"ours, {count} adapters"] = count_ops(unet)
        unet = models.unet("sd15", "meta")
        with_peft(unet, count, rank)
        rows[f"PEFT, {count} adapters"] = count_ops(unet)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of `ops`."""
    argument_parser(__doc__, prog="benchmark.py --ops").parse_args(argv)
    rows = ops()
    bare = rows["bare"]
    print(f"{'SD1.5 UNet forward, 512 px, rank 4':<36}{'ops':>7}{'ratio':>8}{'products':>10}{'ratio':>8}")
    for name, row in rows.items():
        ratios = row.total / bare.total, row.products / bare.products
        print(f"{name:<36}{row.total:>7}{ratios[0]:>8.2f}{row.products:>10}{ratios[1]:>8.2f}")
