"""Fuse the active adapters of a denoiser into its weights, and restore them bitwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .adapter_set import AdapterSet
from .dials import dialed
from .linalg import matrix
from .weight import as_weight


@torch.no_grad()
def fuse_set(adapter_set: AdapterSet) -> None:
    """W <- W + Σ w ΔW, rounded once from fp32. Raises RuntimeError, with nothing changed, if W cannot be written."""
    if adapter_set.fused:
        raise RuntimeError("adapters are already fused; call unfuse_adapters() first")
    if not adapter_set.enabled:
        raise RuntimeError("adapters are disabled; call enable_adapters() before fusing them")
    _refuse_fused_projections(adapter_set)
    projections = adapter_set.places()
    weights = {name: as_weight(given, name) for name, given in adapter_set.weights.items()}
    for name, weight in weights.items():
        if not weight.fixed:
            raise RuntimeError(
                f"the weight of adapter {name!r} depends on step, region, sample or band, and cannot be fused; "
                "give it a number or scopes first"
            )
    active = [(dialed(adapter_set, name, weight), weight) for name, weight in weights.items() if weight.value != 0]
    fused: dict[str, torch.Tensor] = {}
    for path in dict.fromkeys(path for adapters, _ in active for path in adapters):
        linear: Any = projections[path].base
        weight = linear.weight
        plain = type(linear) in (nn.Linear, nn.Conv2d) and type(weight) is nn.Parameter
        if not plain or weight.is_meta or not weight.is_floating_point() or weight.itemsize < 2:
            raise RuntimeError(
                f"{path}: cannot fuse into a {type(linear).__name__} with {weight.dtype} on {weight.device}; "
                "unload PEFT adapters, and load the base unquantized and without offloading"
            )
        wide = matrix(weight).float()
        total = wide.clone()
        for adapters, factor in active:
            if path in adapters:
                total += factor.at(adapter_set.component, path) * adapters[path].delta_weight(wide).to(total)
        fused[path] = total.to(weight.dtype).view_as(weight)
        if not bool(torch.isfinite(fused[path]).all()):
            raise ValueError(f"{path}: the fused weight is not finite; nothing was changed")
    # The originals go to the CPU: subtracting ΔW from a rounded weight would not give them back.
    adapter_set.fused = {path: projections[path].base.weight.detach().to("cpu", copy=True) for path in fused}
    for path, value in fused.items():
        projections[path].base.weight.copy_(value)
    adapter_set.plan()


@torch.no_grad()
def unfuse_set(adapter_set: AdapterSet) -> None:
    """Write the kept weights back."""
    _refuse_fused_projections(adapter_set)
    projections = adapter_set.places()
    for path, original in adapter_set.fused.items():
        projections[path].base.weight.copy_(original)
    adapter_set.fused = {}
    adapter_set.plan()


def _refuse_fused_projections(adapter_set: AdapterSet) -> None:
    # `to_qkv` is a copy of the weights that change here: it would keep the old ones without a word.
    for path, site in adapter_set.sites.items():
        attention: Any = site.attention
        uses_it = getattr(attention, "fused_projections", False)
        if not hasattr(attention, "unfuse_projections"):  # then diffusers only takes the processor away again
            uses_it = uses_it and "Fused" in type(attention.processor).__name__
        if uses_it:
            raise RuntimeError(f"{path}: call unfuse_qkv_projections() before fusing or unfusing adapters")
