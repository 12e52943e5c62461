"""Losses and weights: their values on numbers that can be checked by hand."""

from __future__ import annotations

import pytest
import torch

from train.losses import Prediction, denoising, min_snr_weights


def test_denoising_is_the_weighted_mean_square_of_each_sample():
    target = torch.zeros(2, 1, 2, 2)
    prediction = torch.stack([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 2.0)])
    assert denoising(Prediction(prediction, target)) == 2.5
    assert denoising(Prediction(prediction, target, torch.tensor([1.0, 0.25]))) == 1.0


def test_denoising_is_computed_in_fp32():
    half = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)
    assert denoising(Prediction(half, torch.zeros_like(half))) == 90000


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_x0_loss_by_snr_up_to_gamma(kind):
    """Each weight, times the loss of its own target, is min(snr, gamma) times the loss of x0."""
    snr = torch.tensor([0.01, 1.0, 5.0, 80.0])
    alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    error = {"epsilon": alpha / sigma, "v_prediction": 1 / sigma, "sample": torch.ones(4)}[
        kind
    ]  # of the target, per x0
    torch.testing.assert_close(min_snr_weights(snr, 5.0, kind) * error**2, snr.clamp(max=5.0))


def test_min_snr_is_finite_without_signal():
    for kind in ("epsilon", "v_prediction", "sample"):
        assert torch.isfinite(min_snr_weights(torch.zeros(1), 5.0, kind)).all()
