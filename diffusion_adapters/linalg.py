"""Pure tensor functions that serve more than one family, or export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Best (B, A) of `rank` with B A near `matrix` (out, in), singular values split evenly, and ‖BA − M‖ / ‖M‖."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    total = float(values.norm())
    error = float(values[rank:].norm()) / total if total else 0.0
    return left[:, :rank] * root, root[:, None] * right[:rank], error


def dense_weight(linear: Any) -> Tensor:
    """The frozen W (out, in) of a projection in fp32. Raises RuntimeError where it cannot be read."""
    base = linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear
    weight = base.weight.detach()
    if weight.is_meta and hasattr(base, "_hf_hook"):
        raise RuntimeError("the weight is offloaded; add, load, fuse or export adapters before enabling offloading")
    if not weight.is_floating_point() or weight.shape != (base.out_features, base.in_features):
        raise RuntimeError(f"the weight of a {type(base).__name__} is packed as {tuple(weight.shape)} {weight.dtype}")
    return (weight.dequantize() if type(weight) is not Tensor else weight).float()
