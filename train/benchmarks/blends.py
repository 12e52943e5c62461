"""The ways to have N LoRA adapters in one forward that `--inference` compares."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import nn

from diffusion_adapters import AdapterWeight, add_adapter, fuse_adapters, set_adapters
from train.benchmarks import models

WEIGHTS = (0.7, 0.4)
"""Every adapter has the first; changing weights goes to the second and back."""
SAMPLES = (1.0, 0.5)
"""One for each picture of a batch of two."""


@dataclass(frozen=True)
class Blend:
    """A row: adapters that `attach` attaches, and `weigh` gives a weight each."""

    count: int
    attach: Callable[[Any, int, int], None]
    weigh: Callable[[Any, Sequence[str], float], None]
    last: Callable[[Any], None] | None = None
    """What is done with them once they have their weights; then they are left alone."""
    numbers: bool = False
    """Whether it asks for numbers, which a meta tensor has not, or has others to bring to its device."""

    def start(self, base: Any) -> Any:
        """A UNet of the same numbers to adapt."""
        unet = models.same_numbers(base)
        for module in unet.modules():
            if self.last is fuse_adapters and isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.clone(), requires_grad=False)
        return unet

    def adapt(self, unet: Any, rank: int) -> None:
        """Attach adapters of `rank` to a UNet and let them act."""
        if self.count:
            self.attach(unet, self.count, rank)
            self.change(unet, WEIGHTS[0])
        if self.last is not None:
            self.last(unet)

    def change(self, unet: Any, weight: float) -> None:
        """Give every adapter another weight."""
        self.weigh(unet, names(self.count), weight)

    @property
    def changes(self) -> bool:
        """Whether its weights can be changed."""
        return self.count > 0 and self.last is None


def names(count: int) -> list[str]:
    """Names of `count` adapters."""
    return [f"a{i}" for i in range(count)]


def blends(counts: Sequence[int]) -> dict[str, Blend]:
    """Row -> what it is: bare first, ours and PEFT's with each number of adapters, ours with all that they can."""
    several = min(4, max(counts))
    rows = {"bare": Blend(0, ours, set_adapters)}
    rows |= {f"ours, {count}": Blend(count, ours, set_adapters) for count in counts}
    rows |= {f"PEFT, {count}": Blend(count, peft, weigh_peft) for count in counts}
    rows[f"ours, {several} idle"] = Blend(several, ours, set_adapters, lambda unet: set_adapters(unet, []))
    rows[f"ours, {several} fused"] = Blend(several, ours, set_adapters, fuse_adapters, numbers=True)
    for kind, parts in SHAPES.items():
        rows[f"ours, {several} {kind}"] = Blend(
            several, ours, shaped(*parts), numbers=bool({schedule, halves, bands} & {*parts})
        )
    return rows


def shaped(*parts: Callable[[int], dict[str, Any]]) -> Callable[[Any, Sequence[str], float], None]:
    """Weights with more to them than a number, by the number of the adapter."""

    def weigh(unet: Any, chosen: Sequence[str], weight: float) -> None:
        pipeline = types.SimpleNamespace(components={"unet": unet}, scheduler=SCHEDULER)
        settings = [{key: value for part in parts for key, value in part(i).items()} for i in range(len(chosen))]
        set_adapters(pipeline, chosen, [AdapterWeight(weight, **setting) for setting in settings])

    return weigh


def scopes(number: int) -> dict[str, Any]:
    """Weaker where the layout is made."""
    return {"scopes": {"mid_block": 0.5}}


def schedule(number: int) -> dict[str, Any]:
    """Strong at first."""
    return {"schedule": {0.0: 1.0, 0.6: 0.2}}


def samples(number: int) -> dict[str, Any]:
    """Weaker in the second picture of a batch."""
    return {"samples": SAMPLES}


def halves(number: int) -> dict[str, Any]:
    """In the left half of the picture, or in the right one."""
    left = (torch.arange(64) < 32).float().expand(64, 64)
    return {"mask": left if number % 2 == 0 else 1 - left}


def bands(number: int) -> dict[str, Any]:
    """Coarse layout more than texture."""
    return {"bands": (1.0, 0.5, 0.25)}


SCHEDULER = DDIMScheduler()
SHAPES = {
    "by scope": (scopes,),
    "by step": (schedule,),
    "by sample": (samples,),
    "in two regions": (halves,),
    "by band": (bands,),
    "by all five": (scopes, schedule, samples, halves, bands),
}


def ours(unet: Any, count: int, rank: int) -> None:
    """`count` LoRA adapters of this library, as if they had been trained."""
    for name in names(count):
        adapter_set = add_adapter(unet, name, rank=rank)
    fill(adapter_set.requires_grad_(False))


def peft(unet: Any, count: int, rank: int) -> None:
    """The same with PEFT's LoRA, by the methods that diffusers offers for it."""
    from peft import LoraConfig

    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        for name in names(count):
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), adapter_name=name)
    unet.requires_grad_(False)
    fill(nn.ParameterList(value for key, value in unet.named_parameters() if "lora_" in key))


def weigh_peft(unet: Any, chosen: Sequence[str], weight: float) -> None:
    """Every adapter with the same weight."""
    unet.set_adapters(list(chosen), [weight] * len(chosen))


def fill(values: nn.Module) -> None:
    """Small numbers in place of the zeros at the start: a product with zeros is no fair test."""
    with torch.no_grad():
        for value in values.parameters():
            if not value.is_meta:
                value.normal_(0, 0.01)
