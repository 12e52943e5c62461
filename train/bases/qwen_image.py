"""Qwen-Image: Qwen2.5-VL reads the prompt in a template, of which the head is dropped; a video VAE, for one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.bases import BASES
from train.bases.flow import FlowBase
from train.bases.latents import pack, unpack
from train.bases.options import FLOW
from train.losses import Prediction


class FrameBase(FlowBase):
    """Bases of a VAE of videos, for which a picture is one frame."""

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.encode(images[:, :, None].to(vae.device, vae.dtype)).latent_dist.parameters[:, :, 0]

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents[:, :, None])[:, :, 0]


@BASES.register("qwen_image", "qwenimagepipeline")
class QwenImage(FrameBase):
    takes = FLOW | {"max_sequence_length"}
    sequence_length: ClassVar[int | None] = 1024
    longest: ClassVar[int | None] = 1024

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = 2 ** len(configs["vae"]["temperal_downsample"])
        return 128 * factor, 2 * factor  # 128: the pipeline's default; no configuration says it

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Padded to one length, with the mask of what is prompt."""
        self.warn_of_cuts(self.pipeline.tokenizer, prompts, self.length)
        embeds, mask = self.pipeline.encode_prompt(
            list(prompts), device=self.text_device, max_sequence_length=self.length
        )
        mask = embeds.new_ones(embeds.shape[:2], dtype=torch.long) if mask is None else mask
        more = self.length - embeds.shape[1]
        return {"prompt_embeds": F.pad(embeds, (0, 0, 0, more)), "prompt_mask": F.pad(mask, (0, more))}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised, mask = self.noised(batch), batch["prompt_mask"]
        count, _, height, width = noised.latents.shape
        longest = int(mask.sum(1).max())
        mask = mask[:, :longest]
        made = denoiser(
            hidden_states=pack(noised.latents).to(self.dtype),
            timestep=noised.timesteps.to(self.dtype) / 1000,
            encoder_hidden_states=batch["prompt_embeds"][:, :longest].to(self.dtype),
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[[(1, height // 2, width // 2)]] * count,
            return_dict=False,
        )[0]
        return noised.compared(unpack(made, height, width))

    def call(self, prompts: Sequence[str], guidance_scale: float) -> dict[str, Any]:
        """Guidance goes by another name here, and needs a prompt to move away from."""
        called = super().call(prompts, guidance_scale)
        called["true_cfg_scale"] = called.pop("guidance_scale")
        return {**called, "negative_prompt": [" "] * len(prompts)}
