"""AuraFlow: double blocks, then single ones; one UMT5 encoder whose padding the denoiser reads as zeros."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from train.bases import BASES, latent_factor
from train.bases.flow import FlowBase
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("auraflow", "auraflowpipeline")
class AuraFlow(FlowBase):
    takes = FLOW | {"max_sequence_length"}
    sequence_length: ClassVar[int | None] = 256

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        multiple = latent_factor(configs["vae"]) * configs["transformer"]["patch_size"]
        learned = math.isqrt(configs["transformer"]["pos_embed_max_size"])  # positions there are, along one side
        return min(1024, learned * multiple), multiple  # 1024: the pipeline's default; its sample_size is not used

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.warn_of_cuts(self.pipeline.tokenizer, prompts, self.length)
        embeds, _, _, _ = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.text_device,
            max_sequence_length=self.length,
        )
        return {"prompt_embeds": embeds}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        made = denoiser(
            noised.latents.to(self.dtype),
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            timestep=(noised.timesteps / 1000).to(self.dtype),
            return_dict=False,
        )[0]
        return noised.compared(made)
