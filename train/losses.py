"""Losses and their weights: pure functions of tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FROZEN = "frozen/"
"""In front of the name of a tensor that only the frozen base is told, in place of the one with that name."""
LOSSES = ("l2", "huber", "smooth_l1")


class Prediction(NamedTuple):
    """What a base makes of a batch. `weights`: (b,) by noise level and sample, or None for ones.

    `clean`: the latents without noise, (b, c, h', w'); `gain`: (b,), what they are off by for an error of 1 in the
    prediction: −σ/α of noise, −σ of a velocity, 1 of the latents themselves.
    """

    prediction: Tensor
    target: Tensor
    weights: Tensor | None = None
    clean: Tensor | None = None
    gain: Tensor | None = None

    def denoised(self) -> Tensor:
        """The latents without noise in one step, as the prediction has them: (b, c, h', w') in fp32."""
        assert self.clean is not None
        assert self.gain is not None
        error = self.prediction.float() - self.target.float()
        return self.clean.float() + self.gain.view(-1, *[1] * (error.dim() - 1)) * error


def pointwise(prediction: Tensor, target: Tensor, kind: str = "l2", huber_c: float = 0.1) -> Tensor:
    """Error of each element, in fp32: d² for l2, 2c (√(d² + c²) − c) for huber, 2 (√(d² + c²) − c) for smooth_l1.

    The last two are the pseudo-Huber losses of diffusers' examples: as d² for |d| well below c, linear above it.
    """
    square = (prediction.float() - target.float()).square()
    if kind == "l2":
        return square
    bent = 2 * square / ((square + huber_c**2).sqrt() + huber_c)  # the same, without the cancellation
    return huber_c * bent if kind == "huber" else bent


def masked_mean(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of each sample, (b, c, ..., h, w) -> (b,); with `weight` (b, 1, h', w') in [0, 1] it is Σ w e / Σ w.

    Divided by the sum of the weights, not by the area: a subject that fills a tenth of its picture counts as much as
    one that fills it. 0 where no weight is left. A weight on another grid is averaged over the cells of the error's.
    """
    if weight is None:
        return error.flatten(1).mean(1)
    weight = on_grid(weight, error).expand_as(error)
    total = weight.flatten(1).sum(1)
    return (weight * error).flatten(1).sum(1) / total.clamp(min=torch.finfo(total.dtype).tiny)


def on_grid(mask: Tensor, like: Tensor) -> Tensor:
    """A mask (b, 1, h', w') by area on the grid of `like` (b, c, ..., h, w), with as many dimensions as that."""
    mask = F.adaptive_avg_pool2d(mask.float(), like.shape[-2:])
    return mask.reshape(len(mask), *[1] * (like.dim() - 3), *mask.shape[-2:])


def denoising(made: Prediction) -> Tensor:
    """Mean over the batch of weight × mean squared error, in fp32."""
    error = masked_mean(pointwise(made.prediction, made.target))
    return (error if made.weights is None else error * made.weights).mean()


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """min(snr, γ) times what turns the loss of the predicted quantity into a loss of x0 per snr, (b,) -> (b,).

    Hang et al. 2023, https://arxiv.org/abs/2303.09556, section 3.4: / snr for epsilon, / (snr + 1) for v, 1 for x0.
    """
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return torch.where(snr > 0, clipped / snr, 1.0)
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped
