"""Between images and what a denoiser sees: scaled latents, packed tokens, and the noise of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train.losses import Prediction


class Noised(NamedTuple):
    """Latents on their way to noise, and what a denoiser is to make of them.

    `latents`, `target` (b, c, h', w') in fp32; `timesteps` (b,) as the scheduler counts them; `weights` (b,) or None;
    `clean` and `gain` as in `Prediction`.
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor | None = None
    clean: Tensor | None = None
    gain: Tensor | None = None

    def compared(self, prediction: Tensor) -> Prediction:
        """With what the denoiser made of it, in the layout of `target`."""
        return Prediction(prediction, self.target, self.weights, self.clean, self.gain)


def draw(seeds: Tensor, *shapes: Sequence[int]) -> list[Tensor]:
    """A normal tensor of each of `shapes` from each seed, in this order: each (b, *shape), on the CPU."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    return [torch.stack([torch.randn(tuple(shape), generator=own) for own in generators]) for shape in shapes]


def normalized(latents: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Latents of a VAE with this configuration (b, c, ...) as its denoiser knows them: of about unit variance."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scale = config.get("scaling_factor") or 1.0
    if mean is None or std is None:
        return (latents - (config.get("shift_factor") or 0.0)) * scale
    view = (-1,) + (1,) * (latents.dim() - 2)
    mean, std = (torch.as_tensor(value, device=latents.device, dtype=latents.dtype).view(view) for value in (mean, std))
    return (latents - mean) * scale / std


def denormalized(latents: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The inverse of `normalized`."""
    zero, one = (normalized(torch.full_like(latents[:1], value), config) for value in (0.0, 1.0))
    return (latents - zero) / (one - zero)


def grid_ids(height: int, width: int) -> Tensor:
    """(0, row, column) of each token of a picture, row by row: (h w, 3)."""
    return torch.cartesian_prod(torch.zeros(1), torch.arange(float(height)), torch.arange(float(width)))


def pack(latents: Tensor, patch: int = 2) -> Tensor:
    """(b, c, h, w) -> a token of each patch, row by row: (b, h/p w/p, c p p)."""
    b, c, h, w = latents.shape
    cut = latents.reshape(b, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // patch**2, c * patch**2)


def unpack(tokens: Tensor, height: int, width: int, patch: int = 2) -> Tensor:
    """The inverse of `pack`, for latents of `height` x `width`: (b, h/p w/p, c p p) -> (b, c, h, w)."""
    b, _, d = tokens.shape
    cut = tokens.reshape(b, height // patch, width // patch, d // patch**2, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(b, d // patch**2, height, width)
