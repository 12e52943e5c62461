"""Every base: its target is what the scheduler asks for, its randomness is that of the sample alone."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusion3Pipeline
from torch import nn

import train.bases
from diffusion_adapters import add_adapter
from diffusion_adapters.registry import Registry
from tests import pipelines as tiny
from tests.tiny import save_pipeline
from train.bases import BaseOptions, draw, inspect_base, load_base, sample
from train.bases.sd3 import StableDiffusion3
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


def message(kind, folder, **options):
    with pytest.raises(kind) as caught:
        inspect_base(BaseOptions(pretrained_model_name_or_path=str(folder), **options))
    return str(caught.value)


def test_a_flag_that_a_base_would_not_honour_is_refused_before_it_is_loaded(tmp_path, folder):
    flow = tiny.save("flux", tmp_path / "flux")
    assert message(ValueError, flow, snr_gamma=5.0) == (
        "--snr_gamma 5.0 has no effect on a FluxPipeline: it is for bases of discrete noise levels; leave it out"
    )
    for name, value in {"weighting_scheme": "mode", "logit_mean": 1.0, "max_sequence_length": 64}.items():
        assert f"--{name} {value} has no effect on a StableDiffusionPipeline" in message(
            ValueError, folder, **{name: value}
        )
    said = message(ValueError, flow, mode_scale=1.0, weighting_scheme="logit_normal")
    assert said == "--mode_scale 1.0 is for --weighting_scheme mode, and this run's is logit_normal"
    assert "longer than the 512" in message(ValueError, flow, max_sequence_length=600)
    edit(flow / "transformer" / "config.json", guidance_embeds=False)
    assert "was not distilled" in message(ValueError, flow, training_guidance_scale=1.0)
    edit(flow / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    assert "DDIMScheduler: this base is trained by flow matching" in message(ValueError, flow)


def test_a_scheduler_of_another_kind_is_refused(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "base")
    config = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    edit(config, prediction_type="score")
    assert "prediction_type 'score' is not one of epsilon, v_prediction, sample" in message(
        ValueError, tmp_path / "base"
    )
    config.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    assert "trained at the noise levels of DDPM" in message(ValueError, tmp_path / "base")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", ["stable_diffusion", "flux"])
def test_offset_noise_is_in_the_picture_and_in_the_target(tmp_path, name):
    plain, shifted = (load(tiny.save(name, tmp_path / name), noise_offset=offset) for offset in (None, 0.5))
    batch = {"moments": torch.zeros(64, 8, 8, 8), "seeds": torch.arange(64), "spread": torch.full((64,), 0.5)}
    (clean, noise), (again, other) = plain.latents(batch), shifted.latents(batch)
    assert torch.equal(clean, again)
    offset = other - noise
    torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset))
    assert abs(offset[..., 0, 0].std() - 0.5) < 0.1
    if name == "flux":
        torch.testing.assert_close(shifted.noised(batch).target, other - clean)


def test_another_vae_takes_the_place_of_the_pipelines_own(tmp_path, folder):
    other = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    other.register_to_config(scaling_factor=0.5)
    with torch.no_grad():
        other.decoder.conv_out.bias.fill_(7)
    other.save_pretrained(tmp_path / "vae")
    base = load(folder, pretrained_vae_model_name_or_path=str(tmp_path / "vae"))
    assert base.pipeline.vae.decoder.conv_out.bias[0] == 7
    batch = a_batch(base)
    own = load(folder)
    unscaled = own.latents(batch)[0] / own.pipeline.vae.config.scaling_factor
    torch.testing.assert_close(base.latents(batch)[0], unscaled * 0.5)

    assert "no configuration of a VAE there" in message(
        FileNotFoundError, folder, pretrained_vae_model_name_or_path=str(folder)
    )
    edit(tmp_path / "vae" / "config.json", latent_channels=16)
    assert "latent_channels is 16, where this pipeline needs 4" in message(
        ValueError, folder, pretrained_vae_model_name_or_path=str(tmp_path / "vae")
    )
    assert "no such folder" in message(
        FileNotFoundError, folder, pretrained_vae_model_name_or_path=str(tmp_path / "absent")
    )


@pytest.mark.parametrize("absent", [("",), ("_2",), ("_3",), ("", "_2")])
def test_sd3_goes_without_any_of_its_text_encoders(tmp_path, absent):
    whole = tiny.build("sd3")
    expected = StableDiffusion3(whole, BaseOptions()).encode_prompt(["a red cat"])
    parts = {f"{part}{which}": None for which in absent for part in ("tokenizer", "text_encoder")}
    StableDiffusion3Pipeline(**{**whole.components, **parts}).save_pretrained(tmp_path)
    base = load(tmp_path)
    assert len(base.text_encoders) == 3 - len(absent)
    said = base.encode_prompt(["a red cat"])
    assert {name: value.shape for name, value in said.items()} == {n: v.shape for n, v in expected.items()}
    pooled = {"": slice(0, 8), "_2": slice(8, 24)}
    for which, part in pooled.items():
        same = torch.equal(said["pooled_prompt_embeds"][:, part], expected["pooled_prompt_embeds"][:, part])
        assert same == (which not in absent)
    assert torch.equal(said["prompt_embeds"][:, 77:], expected["prompt_embeds"][:, 77:]) == ("_3" not in absent)
    settings = {"steps": 1, "guidance_scale": 3.0, "side": 64}
    assert sample(base, ["a red cat"], [0], **settings)[0].size == (64, 64)


def test_a_new_base_is_one_file(tmp_path, folder, monkeypatch):
    """A pipeline that nothing here knows is trained by a file of its own in `train/bases/`, and by nothing else."""
    package = tmp_path / "bases"
    package.mkdir()
    (package / "kolors.py").write_text(
        "from train.bases import BASES\n"
        "from train.bases.stable_diffusion import StableDiffusion\n"
        "@BASES.register('kolors', 'kolorspipeline')\n"
        "class Kolors(StableDiffusion):\n"
        "    pass\n"
    )
    shutil.copytree(folder, tmp_path / "new")
    edit(tmp_path / "new" / "model_index.json", _class_name="KolorsPipeline")
    assert "is a KolorsPipeline, which no file" in message(ValueError, tmp_path / "new")
    registry = Registry("base", "train.bases")
    monkeypatch.setattr(train.bases, "__path__", [*train.bases.__path__, str(package)])
    for module in ("train.bases.base", "train.bases.load"):
        monkeypatch.setattr(sys.modules[module], "BASES", registry)
    monkeypatch.setattr(train.bases, "BASES", registry)
    info = inspect_base(BaseOptions(pretrained_model_name_or_path=str(tmp_path / "new")))
    assert info.kind.__name__ == "Kolors"
    sys.modules.pop("train.bases.kolors")


def test_a_quantized_denoiser_is_trained_through(tmp_path, monkeypatch):
    pytest.importorskip("torchao.quantization")
    folder = tiny.save("sd3", tmp_path)
    plain, base = load(folder), load(folder, quantization="torchao_int8")
    weight = base.denoiser.transformer_blocks[0].attn.to_q.weight
    assert "int8" in str(type(weight)).lower() or weight.dtype == torch.int8
    assert base.dtype == torch.float32
    batch = {
        "moments": torch.randn(2, 8, 16, 16),
        "seeds": torch.arange(2),
        "spread": torch.rand(2),
        **base.encode_prompt(["a red cat", "a photo"]),
    }
    adapters = add_adapter(base.denoiser, "cat", "lora")
    made = base.predict(base.denoiser, batch)
    torch.testing.assert_close(made.prediction, plain.predict(plain.denoiser, batch).prediction, atol=0.1, rtol=0.1)
    denoising(made).backward()
    assert any(p.grad is not None and p.grad.any() for p in adapters.parameters())


def test_quantization_that_cannot_be_had_is_refused_in_a_line(folder, monkeypatch):
    with pytest.raises(ValueError, match="--quantization torchao_int4 needs") as caught:
        load(folder, quantization="torchao_int4")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--quantization bnb4 needs the package bitsandbytes: pip install"):
        load(folder, quantization="bnb4")
