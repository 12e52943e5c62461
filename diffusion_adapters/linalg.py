"""Pure tensor functions that serve more than one family, or export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Best (B, A) of `rank` with B A near `matrix` (out, in), singular values split evenly, and ‖BA − M‖ / ‖M‖.

    A whole SVD of 1280 x 1280 takes seconds, and a model has hundreds: where `rank` is small it is taken within a
    subspace that four power iterations found; the error stated is that of the factors returned.
    """
    inside = None
    if 8 * rank < min(matrix.shape):
        probe = torch.randn(matrix.shape[1], rank + 16, generator=torch.Generator().manual_seed(0)).to(matrix)
        for _ in range(4):
            probe = torch.linalg.qr(matrix.t() @ torch.linalg.qr(matrix @ probe).Q).Q
        inside = torch.linalg.qr(matrix @ probe).Q
    left, values, right = torch.linalg.svd(matrix if inside is None else inside.t() @ matrix, full_matrices=False)
    root = values[:rank].sqrt()
    up, down = (left if inside is None else inside @ left)[:, :rank] * root, root[:, None] * right[:rank]
    total = float(matrix.norm())
    return up, down, float((up @ down - matrix).norm()) / total if total else 0.0


def dense_weight(linear: Any) -> Tensor:
    """The frozen W (out, in) of a projection in fp32. Raises RuntimeError where it cannot be read."""
    base = linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear
    weight = base.weight.detach()
    if weight.is_meta and hasattr(base, "_hf_hook"):
        raise RuntimeError("the weight is offloaded; add, load, fuse or export adapters before enabling offloading")
    if not weight.is_floating_point() or weight.shape != (base.out_features, base.in_features):
        raise RuntimeError(f"the weight of a {type(base).__name__} is packed as {tuple(weight.shape)} {weight.dtype}")
    return (weight.dequantize() if type(weight) is not Tensor else weight).float()
