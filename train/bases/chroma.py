"""Chroma: FLUX.1 without CLIP and guidance, with a mask over the prompt's padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from train.bases import BASES, latent_factor
from train.bases.flow import FlowBase
from train.bases.latents import grid_ids, pack, unpack
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("chroma", "chromapipeline")
class Chroma(FlowBase):
    takes = FLOW | {"max_sequence_length"}
    sequence_length: ClassVar[int | None] = 512
    longest: ClassVar[int | None] = 512

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = latent_factor(configs["vae"])
        return 128 * factor, 2 * factor

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.warn_of_cuts(self.pipeline.tokenizer, prompts, self.length)
        embeds, _, mask, *_ = self.pipeline.encode_prompt(
            list(prompts),
            device=self.text_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.length,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        height, width = noised.latents.shape[2:]
        embeds, tokens = batch["prompt_embeds"].to(self.dtype), pack(noised.latents).to(self.dtype)
        mask = batch["prompt_attention_mask"].to(self.dtype)
        output = denoiser(
            hidden_states=tokens,
            timestep=noised.timesteps.to(self.dtype) / 1000,
            encoder_hidden_states=embeds,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=grid_ids(height // 2, width // 2).to(embeds),
            attention_mask=torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1),
            return_dict=False,
        )
        return noised.compared(unpack(output[0], height, width))
