"""Stable Diffusion 3 and 3.5: three text encoders, of which a pipeline may lack any, and flow matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from train.bases import BASES, latent_factor
from train.bases.flow import FlowBase
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("sd3", "stablediffusion3pipeline")
class StableDiffusion3(FlowBase):
    takes = FLOW | {"max_sequence_length"}
    scheme: ClassVar[str] = "logit_normal"  # as the model was trained
    sequence_length: ClassVar[int | None] = 256
    longest: ClassVar[int | None] = 512

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor, transformer = latent_factor(configs["vae"]), configs["transformer"]
        return transformer["sample_size"] * factor, factor * transformer["patch_size"]

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        pipeline, prompts, device = self.pipeline, list(prompts), self.text_device
        if pipeline.text_encoder_3 is not None:
            self.warn_of_cuts(pipeline.tokenizer_3, prompts, self.length)
        clips = [pipeline.text_encoder, pipeline.text_encoder_2]
        present = [clip.config.projection_dim for clip in clips if clip is not None]
        absent = pipeline.transformer.config.pooled_projection_dim - sum(present)
        parts, pooled = [], []
        for clip, tokenizer in zip(clips, [pipeline.tokenizer, pipeline.tokenizer_2], strict=True):
            limit = {"padding": "max_length", "max_length": pipeline.tokenizer_max_length, "truncation": True}
            if clip is None:  # one that is absent says zeros, as when it was dropped in training
                width = absent // (2 - len(present))
                part = torch.zeros(len(prompts), limit["max_length"], width, dtype=self.dtype, device=device)
                parts.append(part)
                pooled.append(part[:, 0])
            else:
                said = clip(
                    tokenizer(prompts, return_tensors="pt", **limit).input_ids.to(device), output_hidden_states=True
                )
                parts.append(said.hidden_states[-2])
                pooled.append(said[0])
        long = pipeline._get_t5_prompt_embeds(prompts, 1, self.length, device, self.dtype)
        short = torch.cat(parts, dim=-1)
        embeds = torch.cat([pad(short, (0, long.shape[-1] - short.shape[-1])), long], dim=1)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": torch.cat(pooled, dim=-1)}

    def call(self, prompts: Sequence[str], guidance_scale: float) -> dict[str, Any]:
        said = self.encode_prompt(prompts)
        unsaid = {f"negative_{name}": value for name, value in self.encode_prompt([""] * len(prompts)).items()}
        return {"guidance_scale": guidance_scale, **said, **unsaid}  # the pipeline cannot encode without a CLIP

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        output = denoiser(
            hidden_states=noised.latents.to(self.dtype),
            timestep=noised.timesteps,
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            pooled_projections=batch["pooled_prompt_embeds"].to(self.dtype),
            return_dict=False,
        )
        return noised.compared(output[0])
