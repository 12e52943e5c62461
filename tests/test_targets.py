"""What every base asks its denoiser for is what its stock pipeline makes the picture of.

No convention of any model stands here. The right answer of a denoiser is found by differentiating `Base.predict`, given
to the stock pipeline, and traced to the latents that reach the VAE: they must be those the VAE made of the picture.
"""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch.utils._pytree import tree_flatten, tree_unflatten

from tests.pipelines import PIPELINES, SIDE, fit, length
from tests.stock import PACKED, UNGUIDED, load
from train.bases import BaseOptions, draw
from train.bases.flow import FlowBase, level_weights, levels
from train.bases.options import WEIGHTING_SCHEMES
from train.losses import denoising

PROMPTS = ["a photo of sks cat", "a red desert in blue water"]


def a_batch(base, spread):
    pictures = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8) * 2 - 1, (SIDE, SIDE))
    rows = [base.encode_prompt([prompt]) for prompt in PROMPTS]
    return {
        "moments": base.encode_image(pictures),
        "seeds": torch.arange(2),
        "spread": torch.full((2,), spread),
        "sizes": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).expand(2, -1),
        **{name: torch.cat([row[name] for row in rows]) for name in rows[0]},
    }


@contextmanager
def answering(denoiser, answer):
    """The denoiser returns `answer`, whatever it is asked."""
    denoiser.forward = lambda *args, **kwargs: answer
    try:
        yield
    finally:
        del denoiser.forward


def right_answer(base, batch):
    """What the denoiser must return so that `predict` finds its target, by the adjoint of all between the two."""
    kept = []
    hook = base.denoiser.register_forward_hook(lambda module, args, output: kept.append(output))
    base.predict(base.denoiser, batch)
    hook.remove()
    leaves, form = tree_flatten(kept[0])
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    with answering(base.denoiser, tree_unflatten(leaves, form)):
        made = base.predict(base.denoiser, batch)
    found = torch.autograd.grad((made.prediction * made.target).sum(), leaves)
    return tree_unflatten(list(found), form)


class DecodedError(Exception):
    """The pipeline has handed its latents to the VAE."""


def at(scheduler, timestep):
    """Let the scheduler go from this timestep to the end in one step."""
    scheduler.timesteps = timestep[None]
    if not isinstance(scheduler, DDIMScheduler):
        scheduler.sigmas = torch.stack([timestep / 1000, torch.zeros(())])


def sampled(base, name, noisy, timestep, monkeypatch):
    """The latents that reach the VAE when the stock pipeline starts from `noisy` at `timestep` and takes one step."""
    pipeline, found = base.pipeline, []
    module = sys.modules[type(pipeline).__module__]

    def begin(shape, **_):
        if shape[-1] == noisy.shape[-1]:
            return noisy.reshape(shape)
        return PACKED[name](pipeline, noisy) if len(shape) == 3 else pipeline._patchify_latents(noisy)

    def decode(z, **_):
        found.append(z)
        raise DecodedError

    original = pipeline.scheduler.set_timesteps

    @functools.wraps(original)
    def set_timesteps(*args, **kwargs):
        original(*args, **kwargs)
        at(pipeline.scheduler, timestep)

    monkeypatch.setattr(module, "randn_tensor", begin)
    monkeypatch.setattr(pipeline.vae, "decode", decode)
    monkeypatch.setattr(pipeline.scheduler, "set_timesteps", set_timesteps)
    settings = {"num_inference_steps": 1, "height": SIDE, "width": SIDE, **length(pipeline)}
    with pytest.raises(DecodedError):
        fit(pipeline)(prompt=list(PROMPTS), **settings, **UNGUIDED.get(name, {"guidance_scale": 1.0}))
    return found[0]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_perfect_predictor_has_no_loss_and_the_stock_pipeline_lands_on_the_picture(tiny_folder, name, monkeypatch):
    base = load(tiny_folder(name))
    for spread in (0.0, 0.3, 0.8):
        torch.manual_seed(0)
        batch = a_batch(base, spread)
        noised = base.noised(batch)
        answer = right_answer(base, batch)
        with answering(base.denoiser, answer):
            made = base.predict(base.denoiser, batch)
            assert made.prediction.shape == made.target.shape == noised.latents.shape
            assert denoising(made) < 1e-10 * made.target.square().mean()
            timestep = noised.timesteps[0].clone()
            with monkeypatch.context() as patch:
                z = sampled(base, name, noised.latents, timestep, patch)
        clean, noise = base.latents(batch)
        torch.testing.assert_close(z.reshape(clean.shape), unscaled(base, batch), atol=2e-4, rtol=1e-3)
        assert torch.equal(noise, draw(batch["seeds"], clean.shape[1:], clean.shape[1:])[1])
        scheduler = type(base.pipeline.scheduler).from_config(base.pipeline.scheduler.config)
        scheduler.set_timesteps(1, **({"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}))
        at(scheduler, timestep)
        if isinstance(base, FlowBase) and hasattr(scheduler, "scale_noise"):
            expected = scheduler.scale_noise(clean, timestep.expand(2), noise)
        else:
            expected = scheduler.add_noise(clean, noise, timestep.expand(2))
        torch.testing.assert_close(noised.latents, expected, atol=1e-5, rtol=1e-4)


def unscaled(base, batch):
    """The VAE's own latents of the pictures: neither scaled nor shifted."""
    moments = batch["moments"]
    if moments.shape[1] == base.latents(batch)[0].shape[1]:
        return moments
    mean, log_variance = moments.chunk(2, 1)
    return mean + draw(batch["seeds"], mean.shape[1:])[0] * (log_variance / 2).exp()


@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_noise_levels_and_weights_are_those_of_diffusers(scheme):
    numbers = {"logit_mean": 0.5, "logit_std": 0.7} if scheme == "logit_normal" else {}
    numbers |= {"mode_scale": 0.8} if scheme == "mode" else {}
    options = BaseOptions(weighting_scheme=scheme, **numbers)
    spread = torch.arange(10_000) / 10_000
    ours = levels(spread, options, scheme).float()
    drawn = compute_density_for_timestep_sampling(
        scheme, 100_000, 0.5, 0.7, 0.8, generator=torch.Generator().manual_seed(0)
    )
    quantiles = torch.linspace(0.02, 0.98, 25)
    torch.testing.assert_close(ours.quantile(quantiles), (1 - drawn).quantile(quantiles), atol=0.01, rtol=0)
    assert ours[0] == 1
    assert (ours.diff() <= 1e-7).all()
    weights = level_weights(ours[:9000], scheme)
    expected = compute_loss_weighting_for_sd3(scheme, ours[:9000])
    torch.testing.assert_close(torch.ones(9000) if weights is None else weights, expected)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 0.9, "max_image_seq_len": 8192},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"use_dynamic_shifting": True, "shift_terminal": 0.02},
    ],
)
def test_noise_levels_are_shifted_as_the_scheduler_does_at_this_size(tiny_folder, config):
    base = load(tiny_folder("flux"))
    base.levels = FlowMatchEulerDiscreteScheduler(**config).config
    spread = torch.arange(0, 1000, 50) / 1000
    batch = {"moments": torch.zeros(20, 8, 64, 32), "seeds": torch.arange(20), "spread": spread}
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    given = {name: base.levels[name] for name in ("base_shift", "max_shift")}
    mu = calculate_shift(512, max_seq_len=base.levels["max_image_seq_len"], **given)
    plain = torch.cat([1 - spread, torch.tensor([1e-3])])
    scheduler.set_timesteps(sigmas=plain.tolist(), mu=mu)
    torch.testing.assert_close(base.noised(batch).timesteps, scheduler.timesteps[:-1], atol=2.0, rtol=2e-3)
