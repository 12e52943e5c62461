"""Stable Diffusion 1.x and 2.x and any other StableDiffusionPipeline: one text encoder, a UNet, discrete noise."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from train.bases import BASES, Base, BaseOptions, draw
from train.losses import Prediction, min_snr_weights

LOG = logging.getLogger("train")


@BASES.register("stable_diffusion", "stablediffusionpipeline")
class StableDiffusion(Base):
    load_arguments: ClassVar[Mapping[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        super().__init__(pipeline, options)
        config = pipeline.scheduler.config
        if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction", "sample"):
            known = "epsilon, v_prediction and sample"
            raise ValueError(f"the scheduler predicts {config.prediction_type!r}; this base knows {known}")
        # The pipeline's own scheduler may be made for sampling alone; the noise levels of both are the same.
        self.noise = DDPMScheduler.from_config(config)
        self.shift = getattr(pipeline.vae.config, "shift_factor", None) or 0.0
        self.scale = pipeline.vae.config.scaling_factor

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        size = configs["unet"]["sample_size"]
        return (size if isinstance(size, int) else min(size)) * factor, factor

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.encode(images.to(vae.device, vae.dtype)).latent_dist.parameters

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokenizer = self.pipeline.tokenizer
        for prompt in prompts:
            if len(tokenizer(prompt).input_ids) > tokenizer.model_max_length:
                LOG.warning(f"only the first {tokenizer.model_max_length - 2} tokens are read of: {prompt}")
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.pipeline.text_encoder.device, 1, False)
        return {"prompt_embeds": embeds}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        moments = batch["moments"].float()
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        posterior, noise = (value.to(moments.device) for value in draw(batch["seeds"], shape))
        mean, log_variance = moments.chunk(2, dim=1)
        latents = mean + posterior * (log_variance.clamp(-30, 20) / 2).exp()
        latents = (latents - self.shift) * self.scale
        timesteps = (batch["spread"] * self.noise.config.num_train_timesteps).long()
        noisy = self.noise.add_noise(latents, noise, timesteps)
        dtype = batch["prompt_embeds"].dtype
        prediction = denoiser(noisy.to(dtype), timesteps, batch["prompt_embeds"], return_dict=False)[0]
        kind = self.noise.config.prediction_type
        target = {"epsilon": noise, "sample": latents}.get(kind)
        if target is None:
            target = self.noise.get_velocity(latents, noise, timesteps)
        if self.options.snr_gamma is None:
            return Prediction(prediction, target)
        alphas = self.noise.alphas_cumprod.to(timesteps.device)[timesteps]
        return Prediction(prediction, target, min_snr_weights(alphas / (1 - alphas), self.options.snr_gamma, kind))
