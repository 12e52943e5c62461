"""Weights that depend on the denoising step: where a run stands, and multipliers that are linear between keyframes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .weight import AdapterWeight

FRACTION = (
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "Krea2Transformer2DModel",
    "QwenImageTransformer2DModel",
)
"""Denoisers that are given t / T instead of the timestep t."""
REMAINDER = ("Ideogram4Transformer2DModel", "Lumina2Transformer2DModel", "ZImageTransformer2DModel")
"""Denoisers that are given 1 - t / T."""

SAMPLES = 1001  # of a function of the position
_NEAR = 1e-5  # a step on a boundary counts as behind it, whatever the rounding


class Schedules:
    """The multipliers of several adapters as tensors, evaluated without a branch on a position."""

    def __init__(self, weights: Sequence[AdapterWeight]) -> None:
        rows = [keyframes(weight) for weight in weights]
        longest = max(8, 1 << (max(map(len, rows)) - 1).bit_length())  # few sizes: another count recompiles nothing
        padded = [row + [row[-1]] * (longest - len(row)) for row in rows]
        self.positions, self.values = torch.tensor(padded).unbind(-1)  # (n, keyframes)
        self.windows = torch.tensor([(weight.start, weight.end) for weight in weights])
        self.by_sigma = torch.tensor([weight.by == "sigma" for weight in weights])

    def __call__(self, step: Tensor, sigma: Tensor) -> Tensor:
        """Multipliers (n,) at the part of the steps that is done and the noise level, both scalars."""
        device = step.device
        x = torch.where(self.by_sigma.to(device), sigma, step)[:, None]
        positions, values = self.positions.to(device), self.values.to(device)
        left = ((positions <= x + _NEAR).sum(1, keepdim=True) - 1).clamp(0, positions.shape[1] - 2)
        p, q = positions.gather(1, left), positions.gather(1, left + 1)
        along = ((x - p) / (q - p).clamp_min(1e-12)).clamp(0, 1)
        value = torch.lerp(values.gather(1, left), values.gather(1, left + 1), along)[:, 0]
        start, end = self.windows.to(device).unbind(1)
        return value * ((step >= start - _NEAR) & (step < end - _NEAR))


def keyframes(weight: AdapterWeight) -> list[tuple[float, float]]:
    """(position, multiplier) of a weight's schedule, ascending; a function is sampled."""
    if weight.schedule is None:
        return [(0.0, 1.0)]
    if isinstance(weight.schedule, Mapping):
        return list(weight.schedule.items())
    parts = [i / (SAMPLES - 1) for i in range(SAMPLES)]
    positions = parts if weight.by == "step" else [part / (1 - part) for part in parts[:-1]]  # sigma has no last value
    values = [float(weight.schedule(position)) for position in positions]
    wrong = [p for p, value in zip(positions, values, strict=True) if not abs(value) < float("inf")]
    if wrong:
        raise ValueError(f"schedule({wrong[0]:g}) is not a finite number")
    return list(zip(positions, values, strict=True))


def clock(scheduler: Any, timestep: Any, denoiser: str, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The part of the steps that is done, in [0, 1), the noise level, and how far off the timestep found is, in 1 / T.

    `timestep` as a denoiser of the class `denoiser` is given it, times `scale`; the steps are those the scheduler was
    last set to, from where an image-to-image run begins.
    """
    t = torch.as_tensor(timestep).reshape(-1)[0].float() / scale
    table = scheduler.timesteps.to(t.device, torch.float32)
    total = scheduler.config.num_train_timesteps
    if denoiser in FRACTION:
        t = t * total
    elif denoiser in REMAINDER:
        t = (1 - t) * total
    off, index = (table - t).abs().min(0)
    begin = getattr(scheduler, "begin_index", None) or 0
    step = (index - begin) / (len(table) - begin)
    if getattr(scheduler, "sigmas", None) is not None:
        sigma = scheduler.sigmas.to(t.device, torch.float32).index_select(0, index.reshape(1))[0]
    else:
        kept = scheduler.alphas_cumprod.to(t.device).index_select(0, t.round().long().reshape(1))[0]
        sigma = ((1 - kept) / kept).sqrt()
    return step, sigma, off * (1000 / total)
