"""PixArt-α and PixArt-Σ: T5 with its mask, discrete noise, a denoiser that may also predict a variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import PixArtAlphaPipeline
from diffusers.utils import is_bs4_available, is_ftfy_available
from torch import Tensor, nn

from train.bases import BASES, BaseOptions, latent_factor
from train.bases.discrete import DiscreteBase
from train.bases.options import DISCRETE
from train.losses import Prediction


@BASES.register("pixart", "pixartalphapipeline", "pixartsigmapipeline")
class PixArt(DiscreteBase):
    component: ClassVar[str] = "transformer"
    takes = DISCRETE | {"max_sequence_length"}
    call_arguments: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False}

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        super().__init__(pipeline, options)
        alpha = isinstance(pipeline, PixArtAlphaPipeline)
        self.length = self.length or (120 if alpha else 300)
        self.told_of_sizes = alpha and pipeline.transformer.config.sample_size == 128

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor, transformer = latent_factor(configs["vae"]), configs["transformer"]
        return transformer["sample_size"] * factor, factor * transformer["patch_size"]

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.warn_of_cuts(self.pipeline.tokenizer, prompts, self.length)
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.text_device,
            clean_caption=is_bs4_available() and is_ftfy_available(),  # as the pipeline does when it samples
            max_sequence_length=self.length,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        told: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.told_of_sizes:
            size = batch["sizes"][:, 4:].float()
            told = {"resolution": size.to(self.dtype), "aspect_ratio": (size[:, :1] / size[:, 1:]).to(self.dtype)}
        output = denoiser(
            noised.latents.to(self.dtype),
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=batch["prompt_attention_mask"],
            timestep=noised.timesteps,
            added_cond_kwargs=told,
            return_dict=False,
        )
        return noised.compared(output[0][:, : noised.latents.shape[1]])
