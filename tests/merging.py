"""Tiny transformers with adapters to be merged."""

from __future__ import annotations

from typing import Any

import torch

from diffusion_adapters import FAMILIES, add_adapter
from tests.hosts import HOST, build, small, stir

WEIGHTS = {"loldu": 0.7, "lora": -0.5, "transformed_lora": 0.4, "wara": 1.2}


def mixed(*families: str, **options: Any) -> Any:
    """A tiny transformer with one stirred adapter of each family, under its name."""
    model = build(HOST)
    torch.manual_seed(0)
    for i, family in enumerate(families or FAMILIES):
        stir(add_adapter(model, family, family, **small(family), **options).parameters(), seed=i)
    return model


def twins(rank: int = 2) -> Any:
    """A tiny transformer with the LoRAs `a` and `b`, of half as many ranks."""
    model = build(HOST)
    for name, own in (("a", rank), ("b", rank // 2)):
        stir(add_adapter(model, name, rank=own).parameters(), seed=ord(name))
    return model
