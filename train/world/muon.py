"""Muon for matrices and convolutions, AdamW for the rest, in one optimizer with one learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """(k, rows, columns) -> the nearest semi-orthogonal matrices, roughly, by a quintic Newton-Schulz iteration.

    The iteration runs on the small Gram matrices: a long matrix is multiplied twice, not once a step.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram, product = x @ x.mT, None
    for step in range(steps):
        factor = b * gram + c * (gram @ gram)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024), scaled by .2 sqrt(max(rows, columns)) to match AdamW's steps."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape are orthogonalized together."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault((p.shape[0], p[0].numel()), []).append(p)
            for (rows, columns), parameters in shapes.items():
                updates = []
                for p in parameters:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]).reshape(rows, columns))
                stacked = orthogonalize(torch.stack(updates)) * (0.2 * max(rows, columns) ** 0.5 * group["lr"])
                for p, update in zip(parameters, stacked, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).sub_(update.reshape(p.shape))


def split_parameters(modules: Iterable[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, everything else for AdamW): embeddings, first and last layers and vectors are the rest."""
    matrices, rest = [], []
    for module in modules:
        for name, p in module.named_parameters():
            outer = any(part in name for part in ("embedding", "conv_in", "conv_out"))
            (rest if p.ndim < 2 or (outer and "time_embedding" not in name) else matrices).append(p)
    return matrices, rest
