"""Every base trains on rectangles, with masks and with itself as teacher."""

from __future__ import annotations

import pytest
import torch

from diffusion_adapters import add_adapter
from tests.pipelines import PIPELINES, SIDE, save
from tests.stock import load
from train.losses import on_grid
from train.objective import Objective

HIGH, WIDE = SIDE // 2, SIDE  # a bucket is never larger than the square


@pytest.mark.parametrize("name", PIPELINES)
def test_a_base_trains_on_rectangles_with_masks_and_teacher(tmp_path, name):
    base = load(save(name, tmp_path / name))
    adapters = add_adapter(base.denoiser, "sks", "lora", rank=2)
    pictures = torch.rand(2, 3, HIGH, WIDE) * 2 - 1
    mask = torch.zeros(2, 1, HIGH // 8, WIDE // 8)
    mask[..., : WIDE // 16] = 1.0
    embeds = [base.encode_prompt([text]) for text in ("a photo of sks cat", "a photo of a cat")]
    batch = {
        "moments": base.encode_image(pictures),
        "seeds": torch.arange(2),
        "spread": torch.tensor([0.3, 0.6]),
        "sizes": torch.tensor([[HIGH, WIDE, 0, 0, HIGH, WIDE]] * 2),
        "mask": mask,
        "prior": torch.tensor([False, True]),
        **{key: torch.cat([one[key] for one in embeds]) for key in embeds[0]},
    }
    objective = Objective(teacher=True, masked_prior_weight=1.0)
    loss, parts = objective(base, base.denoiser, adapters, batch)
    assert parts["loss_instance"] > 1e-3
    assert max(parts["loss_prior"], parts["loss_outside"]) < 1e-8  # an adapter that does nothing is the base
    loss.backward()
    assert any(value.grad.abs().max() > 0 for value in adapters.parameters() if value.grad is not None)
    made = base.predict(base.denoiser, batch)
    height, width = made.prediction.shape[-2:]
    assert width == 2 * height
    expected = torch.zeros(height, width)
    expected[:, : width // 2] = 1.0
    assert torch.equal(on_grid(mask, made.prediction)[0].reshape(height, width), expected)
    with torch.no_grad():
        for value in adapters.parameters():
            value.add_(torch.randn(value.shape))
    _, parts = objective(base, base.denoiser, adapters, batch)
    assert min(parts["loss_prior"], parts["loss_outside"]) > 1e-6
