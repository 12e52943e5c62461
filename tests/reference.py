"""What a denoiser with adapters must put out, from a plain copy to whose weights Σ w ΔW is added.

It knows the ΔW of every file, and every weight of the base is exact in bf16, so that no change of dtype loses a bit.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from diffusion_adapters import FAMILIES, AdapterWeight, add_adapter, delete_adapters, save_adapter
from tests.hosts import build, inputs_in, run, small, stir


class Numbers(NamedTuple):
    """What an adapter holds: which file it was read from, and ΔW by path in fp32."""

    file: str
    deltas: dict[str, Tensor]


def fresh(host: str) -> nn.Module:
    """The denoiser, every number exact in bf16."""
    model = build(host)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.copy_(value.bfloat16())
    return model


@cache
def files(host: str) -> dict[str, tuple[Path, Numbers]]:
    """Two adapter files of every family, of the same settings and other numbers."""
    folder, model = Path(tempfile.mkdtemp(prefix="stateful-")), fresh(host)
    found = {}
    for family in FAMILIES:
        for variant in range(2):
            name = f"{family}-{variant}"
            settings = {**small(family), **({"alpha": 3.0} if family == "lora" else {})}
            torch.manual_seed(0)
            adapter_set = add_adapter(model, "one", family, **settings)
            stir(adapter_set.parameters(), seed=variant)
            path = save_adapter(model, "one", folder / f"{name}.safetensors")
            places = {place: model.get_submodule(place).weight for place in adapter_set.of("one")}
            with torch.no_grad():
                deltas = {p: adapter_set.of("one")[p].delta_weight(w).clone() for p, w in places.items()}
            if family == "lora":  # the plain definition: alpha / rank B A
                stored = safetensors.torch.load_file(path)
                part = next(iter(stored)).partition(".")[0]
                deltas = {p: 1.5 * stored[f"{part}.{p}:B"] @ stored[f"{part}.{p}:A"] for p in places}
            found[name] = (path, Numbers(name, deltas))
            delete_adapters(model, "one")
    return found


FILES = tuple(f"{family}-{variant}" for family in FAMILIES for variant in range(2))
SCOPES = {"to_k": 0.25}
"""What a weight that is no number alone says of keys."""
Blend = tuple[tuple[str, float, bool], ...]
"""File and number of all that acts, and whether the number goes by `SCOPES`."""


@cache
def reference(host: str, blend: Blend, dtype: torch.dtype = torch.float32) -> Tensor:
    """The output of a plain denoiser whose weights are W + Σ w ΔW, summed in fp64, in a dtype."""
    model = fresh(host)
    with torch.no_grad():
        for path in dict.fromkeys(path for file, *_ in blend for path in files(host)[file][1].deltas):
            weight = model.get_submodule(path).weight
            keys = SCOPES["to_k"] if "to_k" in path.split(".") else 1.0
            factors = [(file, factor * (keys if scoped else 1.0)) for file, factor, scoped in blend]
            total = sum(factor * files(host)[file][1].deltas[path].double() for file, factor in factors)
            weight.copy_(weight.double() + total)
    model = nn.Module.to(model, dtype)
    with inputs_in(dtype):
        return run(model, host)


@cache
def bare(host: str, dtype: torch.dtype) -> Tensor:
    """The output of the base in a dtype."""
    model = nn.Module.to(fresh(host), dtype)
    with inputs_in(dtype):
        return run(model, host)


def parts(weight: float | AdapterWeight) -> tuple[float, bool]:
    """The number of a weight, and whether it goes by `SCOPES`."""
    return (weight.value, bool(weight.scopes)) if isinstance(weight, AdapterWeight) else (weight, False)
