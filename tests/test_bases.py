"""Every base: its target is what the scheduler asks for, its randomness is that of the sample alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from tests.tiny import save_pipeline
from train.bases import BaseOptions, draw, inspect_base, load_base
from train.losses import denoising

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("tiny") / "tiny")


def load(folder, **options):
    options = BaseOptions(pretrained_model_name_or_path=str(folder), **options)
    return load_base(inspect_base(options), options, CPU, torch.float32)


def a_batch(base, count=4):
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    embeds = base.encode_prompt(["a photo of sks cat"])["prompt_embeds"].expand(count, -1, -1)
    return {
        "moments": base.encode_image(images),
        "prompt_embeds": embeds,
        "seeds": torch.arange(count),
        "spread": torch.rand(count),
    }


class Perfect(nn.Module):
    """Knows the clean latents: returns exactly what the scheduler's prediction type asks for."""

    def __init__(self, clean, alphas, kind):
        super().__init__()
        self.clean, self.alphas, self.kind = clean, alphas, kind

    def forward(self, noisy, timesteps, embeds, return_dict):
        a = self.alphas[timesteps].sqrt().view(-1, 1, 1, 1)
        s = (1 - self.alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
        noise = (noisy - a * self.clean) / s
        self.seen = noisy, timesteps
        self.answer = {"epsilon": noise, "sample": self.clean, "v_prediction": a * noise - s * self.clean}[self.kind]
        return (self.answer,)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_predictor_has_no_loss_and_lands_on_the_image(tmp_path, folder, kind, gamma):
    shutil.copytree(folder, tmp_path / "base")
    config = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": kind}))
    base = load(tmp_path / "base", snr_gamma=gamma)
    batch = a_batch(base)
    posterior, _ = draw(batch["seeds"], (4, 8, 8), (4, 8, 8))
    mean, log_variance = batch["moments"].chunk(2, 1)
    clean = (mean + posterior * (log_variance / 2).exp()) * base.pipeline.vae.config.scaling_factor
    perfect = Perfect(clean, base.noise.alphas_cumprod, kind)
    made = base.predict(perfect, batch)
    assert denoising(made) < 1e-9 * made.target.square().mean()
    assert (made.weights is None) == (gamma is None)

    scheduler = DDIMScheduler.from_pretrained(tmp_path / "base" / "scheduler")
    scheduler.set_timesteps(50)
    noisy, timesteps = perfect.seen
    for i in range(len(noisy)):
        step = scheduler.step(perfect.answer[i], timesteps[i], noisy[i])
        torch.testing.assert_close(step.pred_original_sample, clean[i], atol=1e-4, rtol=1e-3)


def test_a_sample_is_the_same_in_any_batch(folder):
    base = load(folder)
    batch = a_batch(base)
    whole = base.predict(base.denoiser, batch)
    for i in range(4):
        alone = base.predict(base.denoiser, {name: value[i : i + 1] for name, value in batch.items()})
        torch.testing.assert_close(alone.target[0], whole.target[i])
        torch.testing.assert_close(alone.prediction[0], whole.prediction[i], atol=1e-5, rtol=1e-4)


def test_noise_is_normal_and_independent():
    first, second = draw(torch.arange(4000), (2,), (2,))
    for noise in (first, second):
        assert abs(noise.mean()) < 0.05
        assert abs(noise.std() - 1) < 0.05
    assert abs((first * second).mean()) < 0.05
    assert abs((first[:-1] * first[1:]).mean()) < 0.05


def test_prompts_and_images_are_encoded_as_the_pipeline_does(folder):
    base = load(folder)
    embeds, _ = base.pipeline.encode_prompt(["a red cat"], CPU, 1, False)
    assert torch.equal(base.encode_prompt(["a red cat"])["prompt_embeds"], embeds)
    images = torch.zeros(1, 3, 16, 16)
    mean, _ = base.encode_image(images).chunk(2, 1)
    assert torch.equal(mean, base.pipeline.vae.encode(images).latent_dist.mean)


def test_the_base_is_frozen_and_known_before_it_is_loaded(folder):
    info = inspect_base(BaseOptions(pretrained_model_name_or_path=str(folder)))
    assert (info.side, info.multiple) == (16, 2)
    blank = info.denoiser()
    base = load(folder)
    assert not any(p.requires_grad for p in base.denoiser.parameters())
    assert {n: p.shape for n, p in blank.named_parameters()} == {
        n: p.shape for n, p in base.denoiser.named_parameters()
    }
    assert all(p.is_meta for p in blank.parameters())


def test_what_is_no_base_is_refused_with_the_reason(tmp_path, folder, monkeypatch):
    def message(path):
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            inspect_base(BaseOptions(pretrained_model_name_or_path=str(path)))
        return str(caught.value)

    assert message(tmp_path / "absent").endswith("no such folder; give the folder of a diffusers pipeline or a Hub id")
    (tmp_path / "near").mkdir()
    assert "did you mean" in message(tmp_path / "neat")
    assert "neither a folder with a model_index.json nor on the Hub" in message(tmp_path / "near")
    (tmp_path / "file").write_text("")
    assert "is a file; give the folder of a diffusers pipeline" in message(tmp_path / "file")
    shutil.copytree(folder, tmp_path / "other")
    index = tmp_path / "other" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "MarigoldDepthPipeline"}))
    said = message(tmp_path / "other")
    assert "is a MarigoldDepthPipeline, which no file in train/bases/ drives; available: " in said
    assert {"StableDiffusionPipeline", "FluxPipeline"} <= set(said.split("available: ")[1].split(", "))
