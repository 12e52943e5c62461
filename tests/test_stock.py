"""Every base does in training what its stock pipeline does in sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diffusion_adapters import add_adapter, delete_adapters, load_adapter, save_adapter
from tests.pipelines import PIPELINES, SIDE, build, sample
from tests.stock import load, recorded, stock_calls
from train.bases import BASES, Base
from train.bases.latents import Noised
from train.losses import denoising

PROMPTS = ["a photo of sks cat", "a red desert under water in blue studio"]


@dataclass
class Loaded:
    """A base and its tiny pipeline, as they come from a folder; tests leave them as they found them."""

    name: str
    folder: Path
    base: Base


@pytest.fixture(scope="module", params=list(PIPELINES))
def loaded(request, tiny_folder):
    folder = tiny_folder(request.param)
    return Loaded(request.param, folder, load(folder))


def a_batch(base, count=2):
    pictures = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pictures = torch.nn.functional.interpolate(pictures, (SIDE, SIDE))
    rows = [base.encode_prompt([PROMPTS[i % 2]]) for i in range(count)]
    return {
        "moments": base.encode_image(pictures),
        "seeds": torch.arange(count),
        "spread": (torch.arange(count) + 0.5) / count,
        "sizes": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).expand(count, -1),
        **{name: torch.cat([row[name] for row in rows]) for name in rows[0]},
    }


def assert_same(ours, stock, where):
    if isinstance(stock, Tensor):
        stock = stock.expand(len(ours)) if stock.ndim == 0 else stock  # one timestep for all
        assert ours.dtype == stock.dtype, where
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-4, msg=lambda text: f"{where}: {text}")
    elif isinstance(stock, dict):
        assert ours.keys() == stock.keys(), where
        for key in stock:
            assert_same(ours[key], stock[key], f"{where} {key}")
    elif isinstance(stock, (list, tuple)):
        assert len(ours) == len(stock), where
        for i in range(len(stock)):
            assert_same(ours[i], stock[i], f"{where} {i}")
    else:
        assert ours == stock, where


def test_the_denoiser_is_told_what_the_stock_pipeline_tells_it(loaded, monkeypatch):
    name, base = loaded.name, loaded.base
    batch = a_batch(base)
    like, _ = base.latents(batch)
    latents = [torch.randn(like.shape) for _ in range(3)]
    calls, timesteps = stock_calls(base.pipeline, name, PROMPTS, latents)
    assert len(calls) == len(set(timesteps.tolist())) == 3
    for plain, timestep, stock in zip(latents, timesteps, calls, strict=True):
        monkeypatch.setattr(base, "noised", lambda _, x=plain, t=timestep: Noised(x, t.expand(2), torch.zeros_like(x)))
        with recorded(base.denoiser) as ours:
            base.predict(base.denoiser, batch)
        assert_same(ours[0], stock, f"{name} at {timestep}")


def test_pictures_are_encoded_as_the_vae_does(loaded):
    vae, pictures = loaded.base.pipeline.vae, torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        encoded = vae.encode(pictures[:, :, None] if "temperal_downsample" in vae.config else pictures)
    expected = encoded.latent if "latent" in encoded else encoded.latent_dist.parameters
    found = loaded.base.encode_image(pictures)
    assert found.ndim == 4
    torch.testing.assert_close(found, expected.reshape(found.shape))


def test_a_sample_is_the_same_in_any_batch(loaded):
    base = loaded.base
    batch = a_batch(base)
    with torch.no_grad():
        whole = base.predict(base.denoiser, batch)
        for i in range(2):
            alone = base.predict(base.denoiser, {key: value[i : i + 1] for key, value in batch.items()})
            torch.testing.assert_close(alone.target[0], whole.target[i])
            torch.testing.assert_close(alone.prediction[0], whole.prediction[i], atol=1e-4, rtol=1e-3)


def test_the_gradient_is_the_slope_of_the_loss(loaded):
    """No part of a denoiser answers without gradients, as the experts of HiDream do when they sample."""
    base = loaded.base
    batch, adapters = a_batch(base), add_adapter(base.denoiser, "cat", "lora", rank=4)
    parameters = list(adapters.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    denoising(base.predict(base.denoiser, batch)).backward()
    slope = sum(p.grad.square().sum() for p in parameters if p.grad is not None).sqrt()
    # What got no gradient, as the last layer of a stream that is not read, must not matter: any way will do for it.
    ways = [torch.randn_like(p) if p.grad is None else p.grad / slope for p in parameters]
    losses = []
    for step in (1e-2, -2e-2):
        with torch.no_grad():
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.add_(way, alpha=step)
            losses.append(denoising(base.predict(base.denoiser, batch)).double())
    delete_adapters(base.denoiser, "cat")
    assert abs((losses[0] - losses[1]) / 2e-2 / slope - 1) < 3e-3


def test_what_was_trained_is_seen_in_a_fresh_stock_pipeline(tmp_path, loaded):
    name, base = loaded.name, loaded.base
    before = sample(base.pipeline, name, PROMPTS[0])
    batch = a_batch(base)
    adapters = add_adapter(base.denoiser, "cat", "lora", rank=4)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=3e-2)
    losses = []
    for _ in range(12):
        loss = denoising(base.predict(base.denoiser, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    assert all(adapters.coverage().values())
    after = sample(base.pipeline, name, PROMPTS[0])
    save_adapter(base.denoiser, "cat", tmp_path / "cat.safetensors")
    delete_adapters(base.denoiser, "cat")

    fresh = DiffusionPipeline.from_pretrained(loaded.folder)
    fresh.set_progress_bar_config(disable=True)
    assert type(fresh) is type(base.pipeline)
    assert abs(sample(fresh, name, PROMPTS[0]) - before).max() < 1e-4
    assert abs(sample(fresh, name, PROMPTS[1]) - before).max() > 1e-3  # it listens to the prompt
    load_adapter(fresh, tmp_path / "cat.safetensors")
    again = sample(fresh, name, PROMPTS[0])
    assert abs(again - after).max() < 1e-4
    assert abs(again - before).max() > 1e-2


def test_every_base_has_its_tiny_pipelines():
    aliases = {alias for base in BASES for alias in BASES.aliases(base)}
    assert {type(build(name)).__name__.lower() for name in PIPELINES} == aliases
