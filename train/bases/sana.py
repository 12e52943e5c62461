"""Sana: a linear transformer over the latents of a deep compression autoencoder; Gemma 2 reads the prompt."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from train.bases import BASES
from train.bases.flow import FlowBase
from train.bases.latents import normalized
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("sana", "sanapipeline")
class Sana(FlowBase):
    takes = FLOW | {"max_sequence_length"}
    sequence_length: ClassVar[int | None] = 300
    call_arguments: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False}  # the side asked for, not resized

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = 2 ** (len(configs["vae"]["encoder_block_out_channels"]) - 1)
        config = configs["transformer"]
        return config["sample_size"] * factor, math.lcm(32, factor * config["patch_size"])

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) -> the latents themselves: this autoencoder has no posterior."""
        vae = self.pipeline.vae
        return vae.encode(images.to(vae.device, vae.dtype)).latent

    def latents(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        latents = batch["moments"].float()
        _, noise = self.drawn(batch, latents)
        return normalized(latents, self.pipeline.vae.config), noise

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """With the instruction that the pipeline puts before each prompt when it samples."""
        self.warn_of_cuts(self.pipeline.tokenizer, prompts, self.length)
        instruction = inspect.signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.text_device,
            max_sequence_length=self.length,
            complex_human_instruction=instruction,
        )
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        made = denoiser(
            noised.latents.to(self.dtype),
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=batch["prompt_mask"],
            timestep=noised.timesteps * self.pipeline.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return noised.compared(made[:, : noised.target.shape[1]])  # some also predict a variance, behind the velocity
