"""Losses and their weights: pure functions of tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """What a base makes of a batch. `weights`: (b,) by noise level and sample, or None for ones."""

    prediction: Tensor
    target: Tensor
    weights: Tensor | None = None


def denoising(made: Prediction) -> Tensor:
    """Mean over the batch of weight × mean squared error, in fp32."""
    error = (made.prediction.float() - made.target.float()).square().flatten(1).mean(1)
    return (error if made.weights is None else error * made.weights).mean()


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """min(snr, γ) times what turns the loss of the predicted quantity into a loss of x0 per snr, (b,) -> (b,).

    Hang et al. 2023, https://arxiv.org/abs/2303.09556, section 3.4: / snr for epsilon, / (snr + 1) for v, 1 for x0.
    """
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return torch.where(snr > 0, clipped / snr, 1.0)
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped
