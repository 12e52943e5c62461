"""Ideogram 4: one packed sequence of prompt and image; Qwen3-VL; the VAE of FLUX.2. Time runs from noise at 0.

Adapters go into the transformer that reads the prompt; the other, which guidance moves away from, stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_ideogram4 import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)
from torch import Tensor, nn

from train.bases import BASES, BaseOptions, latent_factor
from train.bases.flux2 import Normalized
from train.bases.latents import grid_ids
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("ideogram4", "ideogram4pipeline")
class Ideogram4(Normalized):
    takes = FLOW | {"max_sequence_length"}
    scheme: ClassVar[str] = "logit_normal"
    sequence_length: ClassVar[int | None] = 512  # padding changes nothing here, and each token is 100 KiB in bf16
    call_arguments: ClassVar[Mapping[str, Any]] = {"guidance_schedule": None}

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        if (options.weighting_scheme or self.scheme) == "logit_normal" and options.logit_std is None:
            options = dataclasses.replace(options, logit_std=1.5)  # as the pipeline samples
        super().__init__(pipeline, options)

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        return 1024, 2 * latent_factor(configs["vae"])

    def shift(self, tokens: int) -> float:
        """None at 1024 tokens; with four times the pixels the odds of noise are twice as high."""
        return math.sqrt(tokens / 1024)

    def pack(self, latents: Tensor) -> Tensor:
        """Places in a patch come before channels in a token."""
        return super().pack(latents).unflatten(-1, (-1, 4)).transpose(-1, -2).flatten(-2)

    def unpack(self, tokens: Tensor, height: int, width: int) -> Tensor:
        return super().unpack(tokens.unflatten(-1, (4, -1)).transpose(-1, -2).flatten(-2), height, width)

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Padded on the left to one length. Raises ValueError for a prompt that is longer."""
        embeds, _, _, kinds = self.pipeline.encode_prompt(list(prompts), 1, 1, self.length, self.text_device)
        return {
            "prompt_embeds": embeds[:, : self.length].to(self.dtype),
            "prompt_mask": kinds[:, : self.length] == LLM_TOKEN_INDICATOR,
        }

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised, mask = self.noised(batch), batch["prompt_mask"].long()
        embeds, image = batch["prompt_embeds"].to(self.dtype), self.pack(noised.latents).to(self.dtype)
        height, width = noised.latents.shape[2:]
        places = (mask.cumsum(1) - 1).clamp(min=0)[..., None].expand(-1, -1, 3)
        grid = grid_ids(height // 2, width // 2).long().to(mask.device) + IMAGE_POSITION_OFFSET
        ones = mask.new_ones(image.shape[:2])
        made = denoiser(
            hidden_states=torch.cat([image.new_zeros(*mask.shape, image.shape[-1]), image], dim=1),
            timestep=(1 - noised.timesteps / self.levels.num_train_timesteps).to(self.dtype),
            encoder_hidden_states=torch.cat([embeds, embeds.new_zeros(*ones.shape, embeds.shape[-1])], dim=1),
            position_ids=torch.cat([places, grid.expand(len(mask), -1, -1)], dim=1),
            segment_ids=torch.cat([torch.where(mask > 0, 1, SEQUENCE_PADDING_INDICATOR), ones], dim=1),
            indicator=torch.cat([mask * LLM_TOKEN_INDICATOR, ones * OUTPUT_IMAGE_INDICATOR], dim=1),
            return_dict=False,
        )[0]
        return noised.compared(-self.unpack(made[:, mask.shape[1] :], height, width))
