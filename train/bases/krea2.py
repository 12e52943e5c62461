"""Krea 2: hidden states of many layers of Qwen3-VL, fused by the denoiser; the VAE of Qwen-Image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from train.bases import BASES
from train.bases.latents import grid_ids, pack, unpack
from train.bases.options import FLOW
from train.bases.qwen_image import FrameBase
from train.losses import Prediction


@BASES.register("krea2", "krea2pipeline")
class Krea2(FrameBase):
    takes = FLOW | {"max_sequence_length"}
    sequence_length: ClassVar[int | None] = 512

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        patch = configs["pipeline"].get("patch_size", 2)
        return 1024, patch * 2 ** len(configs["vae"]["temperal_downsample"])  # 1024: the pipeline's default

    def shift(self, tokens: int) -> float:
        """The distilled one keeps one shift at every size."""
        return math.exp(1.15) if self.pipeline.config.is_distilled else super().shift(tokens)

    def tokens(self, latents: Tensor) -> int:
        return math.prod(latents.shape[2:]) // self.pipeline.patch_size**2

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Prompt, padding and the end of the template in one length, for each layer: (b, n, layers, d)."""
        after = self.pipeline.prompt_template_encode_num_suffix_tokens
        self.warn_of_cuts(self.pipeline.tokenizer, prompts, self.length - after)
        embeds, mask = self.pipeline.encode_prompt(
            list(prompts), device=self.text_device, max_sequence_length=self.length
        )
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised, embeds, patch = self.noised(batch), batch["prompt_embeds"].to(self.dtype), self.pipeline.patch_size
        height, width = noised.latents.shape[2:]
        image = grid_ids(height // patch, width // patch).to(embeds.device)
        made = denoiser(
            hidden_states=pack(noised.latents, patch).to(self.dtype),
            encoder_hidden_states=embeds,
            timestep=(noised.timesteps / self.levels.num_train_timesteps).to(self.dtype),
            position_ids=torch.cat([image.new_zeros(embeds.shape[1], 3), image]),
            encoder_attention_mask=batch["prompt_mask"].bool(),
            return_dict=False,
        )[0]
        return noised.compared(unpack(made, height, width, patch))
