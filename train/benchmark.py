"""Measure adapters against the bare base and against PEFT's LoRA, in one process.

python train/benchmark.py --ops        launches of an SD1.5 UNet forward, counted exactly on meta tensors
"""

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

SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
"""Configuration of the UNet of Stable Diffusion 1.5."""

_FREE = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "split",
    "chunk",
    "unsqueeze",
}
_FREE |= {"squeeze", "alias", "detach", "as_strided", "reshape", "unbind", "split_with_sizes", "diagonal", "lift_fresh"}


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


def sd15_unet() -> nn.Module:
    """The UNet of Stable Diffusion 1.5 on the meta device: shapes without numbers."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**SD15).eval()


def count_ops(unet: nn.Module) -> OpCounter:
    """Operations of one forward at 512 pixels, batch 1."""
    with torch.no_grad(), torch.device("meta"):
        inputs = torch.empty(1, 4, 64, 64), torch.tensor(1), torch.empty(1, 77, 768)
        unet(*inputs)  # prepares what is kept between forwards
        with OpCounter() as counter, _AttentionAsOne(counter):
            unet(*inputs)
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
    rows = {"bare": count_ops(sd15_unet())}
    for count in counts:
        unet = sd15_unet()
        with_adapters(unet, count, rank=rank)
        rows[f"ours, {count} adapters"] = count_ops(unet)
        unet = sd15_unet()
        with_peft(unet, count, rank)
        rows[f"PEFT, {count} adapters"] = count_ops(unet)
    return rows


def print_ops() -> None:
    """Print the table of `ops`."""
    rows = ops()
    bare = rows["bare"]
    print(f"{'SD1.5 UNet forward, 512 px, rank 4':<36}{'ops':>7}{'ratio':>8}{'products':>10}{'ratio':>8}")
    for name, row in rows.items():
        ratios = row.total / bare.total, row.products / bare.products
        print(f"{name:<36}{row.total:>7}{ratios[0]:>8.2f}{row.products:>10}{ratios[1]:>8.2f}")


def main() -> None:
    """Run the measurement that was asked for."""
    parser = argument_parser(__doc__)
    parser.add_argument("--ops", action="store_true", required=True, help="count operations")
    parser.parse_args()
    print_ops()


if __name__ == "__main__":
    main()
