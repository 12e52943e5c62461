"""Stable Diffusion XL: two text encoders, pooled embeddings, and the sizes of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from train.bases import BASES, latent_factor
from train.bases.discrete import DiscreteBase
from train.losses import Prediction


@BASES.register("sdxl", "stablediffusionxlpipeline")
class StableDiffusionXL(DiscreteBase):
    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, object]]) -> tuple[int, int]:
        factor = latent_factor(configs["vae"])
        return configs["unet"]["sample_size"] * factor, factor

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.warn_of_cuts(self.pipeline.tokenizer_2, prompts)
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.text_device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        told = {"text_embeds": batch["pooled_prompt_embeds"].to(self.dtype), "time_ids": batch["sizes"].to(self.dtype)}
        output = denoiser(
            noised.latents.to(self.dtype),
            noised.timesteps,
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            added_cond_kwargs=told,
            return_dict=False,
        )
        return noised.compared(output[0])
