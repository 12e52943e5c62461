"""Stable Diffusion 1.x and 2.x: any StableDiffusionPipeline, one text encoder, a UNet, discrete noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from train.bases import BASES, latent_factor
from train.bases.discrete import DiscreteBase
from train.losses import Prediction


@BASES.register("stable_diffusion", "stablediffusionpipeline")
class StableDiffusion(DiscreteBase):
    load_arguments: ClassVar[Mapping[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = latent_factor(configs["vae"])
        size = configs["unet"]["sample_size"]
        return (size if isinstance(size, int) else min(size)) * factor, factor

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.warn_of_cuts(self.pipeline.tokenizer, prompts)
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.text_device, 1, False)
        return {"prompt_embeds": embeds}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        noisy, embeds = noised.latents.to(self.dtype), batch["prompt_embeds"].to(self.dtype)
        return noised.compared(denoiser(noisy, noised.timesteps, embeds, return_dict=False)[0])
