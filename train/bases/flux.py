"""FLUX.1: T5 and the pooled CLIP, packed latents with positions, and a guidance scale where it was distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from train.bases import BASES, BaseOptions, latent_factor
from train.bases.flow import FlowBase
from train.bases.latents import grid_ids, pack, unpack
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("flux", "fluxpipeline")
class Flux(FlowBase):
    takes = FLOW | {"max_sequence_length", "training_guidance_scale"}
    sequence_length: ClassVar[int | None] = 512
    longest: ClassVar[int | None] = 512

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = latent_factor(configs["vae"])
        return 128 * factor, 2 * factor

    @classmethod
    def check(cls, options: BaseOptions, configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().check(options, configs)
        if options.training_guidance_scale is not None and not configs["transformer"].get("guidance_embeds"):
            raise ValueError("--training_guidance_scale: this denoiser was not distilled and takes none; leave it out")

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.warn_of_cuts(self.pipeline.tokenizer_2, prompts, self.length)
        embeds, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.text_device, max_sequence_length=self.length
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        height, width = noised.latents.shape[2:]
        embeds = batch["prompt_embeds"].to(self.dtype)
        guidance = None
        if self.denoiser.config.guidance_embeds:
            scale = self.options.training_guidance_scale
            guidance = noised.timesteps.new_full(noised.timesteps.shape, 1.0 if scale is None else scale)
        output = denoiser(
            hidden_states=pack(noised.latents).to(self.dtype),
            timestep=noised.timesteps.to(self.dtype) / 1000,
            guidance=guidance,
            pooled_projections=batch["pooled_prompt_embeds"].to(self.dtype),
            encoder_hidden_states=embeds,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=grid_ids(height // 2, width // 2).to(embeds),
            return_dict=False,
        )
        return noised.compared(unpack(output[0], height, width))
