"""Pure tensor functions that serve more than one family, or export."""

from __future__ import annotations

import torch
from torch import Tensor


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Best (B, A) of `rank` with B A near `matrix` (out, in), singular values split evenly, and ‖BA − M‖ / ‖M‖."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    total = float(values.norm())
    error = float(values[rank:].norm()) / total if total else 0.0
    return left[:, :rank] * root, root[:, None] * right[:rank], error
