"""FLUX.2 dev and klein: 2 x 2 latents are one token, normalized by running statistics that the VAE carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from train.bases import BASES, latent_factor
from train.bases.flow import FlowBase
from train.bases.latents import pack, unpack
from train.bases.options import FLOW
from train.losses import Prediction


def positions(*sizes: int) -> Tensor:
    """Every place of a grid of time, height, width and text, the last fastest: (product of sizes, 4)."""
    return torch.cartesian_prod(*map(torch.arange, sizes))


class Normalized(FlowBase):
    """Bases of this VAE, which normalizes tokens by statistics that it carries."""

    def latents(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        latents, noise = super().latents(batch)
        vae, tokens = self.pipeline.vae, self.pack(latents)
        mean, variance = (value.to(tokens) for value in (vae.bn.running_mean, vae.bn.running_var))
        tokens = (tokens - mean) / (variance + vae.config.batch_norm_eps).sqrt()
        return self.unpack(tokens, *latents.shape[2:]), noise

    def pack(self, latents: Tensor) -> Tensor:
        """(b, c, h, w) -> tokens as the VAE's statistics know them, (b, h/2 w/2, 4c)."""
        return pack(latents)

    def unpack(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `pack`."""
        return unpack(tokens, height, width)


class Flux2(Normalized):
    sequence_length: ClassVar[int | None] = 512

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = latent_factor(configs["vae"])
        return 128 * factor, 2 * factor  # 128: the pipeline's default; no configuration says it

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _ = self.pipeline.encode_prompt(list(prompts), device=self.text_device, max_sequence_length=self.length)
        return {"prompt_embeds": embeds}

    def guidance(self, like: Tensor) -> Tensor | None:
        """The guidance scale that the denoiser is told, (b,)."""
        return None

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised, embeds = self.noised(batch), batch["prompt_embeds"].to(self.dtype)
        count, _, height, width = noised.latents.shape
        text, image = positions(1, 1, 1, embeds.shape[1]), positions(1, height // 2, width // 2, 1)
        made = denoiser(
            hidden_states=pack(noised.latents).to(self.dtype),
            timestep=noised.timesteps.to(self.dtype) / 1000,
            guidance=self.guidance(noised.timesteps),
            encoder_hidden_states=embeds,
            txt_ids=text.to(embeds.device).expand(count, -1, -1),
            img_ids=image.to(embeds.device).expand(count, -1, -1),
            return_dict=False,
        )[0]
        return noised.compared(unpack(made, height, width))


@BASES.register("flux2", "flux2pipeline")
class Flux2Dev(Flux2):
    """Mistral 3 reads the prompt; the denoiser is told a guidance scale."""

    takes = FLOW | {"max_sequence_length", "training_guidance_scale"}

    def guidance(self, like: Tensor) -> Tensor | None:
        scale = self.options.training_guidance_scale
        return torch.full_like(like, 1.0 if scale is None else scale)


@BASES.register("flux2_klein", "flux2kleinpipeline")
class Flux2Klein(Flux2):
    """Qwen3 reads the prompt."""

    takes = FLOW | {"max_sequence_length"}
