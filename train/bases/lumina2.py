"""Lumina-Image 2.0: one sequence of prompt and image, Gemma 2. Time runs from noise at 0 to the image at 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from train.bases import BASES, latent_factor
from train.bases.flow import FlowBase
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("lumina2", "lumina2pipeline")
class Lumina2(FlowBase):
    takes = FLOW | {"max_sequence_length"}
    sequence_length: ClassVar[int | None] = 256
    longest: ClassVar[int | None] = 512

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = latent_factor(configs["vae"])
        return configs["transformer"]["sample_size"] * factor, factor * configs["transformer"]["patch_size"]

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        pipeline = self.pipeline
        before = len(pipeline.tokenizer(f"{pipeline.system_prompt} <Prompt Start> ").input_ids)
        self.warn_of_cuts(pipeline.tokenizer, prompts, max(self.length - before, 1))
        embeds, mask, _, _ = pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.text_device,
            max_sequence_length=self.length,
        )
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        made = denoiser(
            hidden_states=noised.latents.to(self.dtype),
            timestep=1 - noised.timesteps / self.levels.num_train_timesteps,
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=batch["prompt_mask"],
            return_dict=False,
        )[0]
        return noised.compared(-made)
