"""HunyuanDiT: a bilingual CLIP and mT5 with their masks, the sizes of the picture, discrete noise, a variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import Tensor, nn

from train.bases import BASES, latent_factor
from train.bases.discrete import DiscreteBase
from train.losses import Prediction

LENGTHS = 77, 256
"""Tokens of CLIP and of mT5 that the denoiser takes."""


@BASES.register("hunyuan_dit", "hunyuanditpipeline")
class HunyuanDiT(DiscreteBase):
    component: ClassVar[str] = "transformer"
    load_arguments: ClassVar[Mapping[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}
    call_arguments: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False}

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor, transformer = latent_factor(configs["vae"]), configs["transformer"]
        return transformer["sample_size"] * factor, factor * transformer["patch_size"]

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        found = {}
        self.warn_of_cuts(self.pipeline.tokenizer_2, prompts, LENGTHS[1])
        for i, (suffix, length) in enumerate(zip(("", "_2"), LENGTHS, strict=True)):
            embeds, _, mask, _ = self.pipeline.encode_prompt(
                list(prompts),
                device=self.text_device,
                dtype=self.dtype,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                text_encoder_index=i,
            )
            found |= {f"prompt_embeds{suffix}": embeds, f"prompt_attention_mask{suffix}": mask}
        return found

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        sizes = batch["sizes"]  # this model reads them as original, target, crop
        output = denoiser(
            noised.latents.to(self.dtype),
            noised.timesteps.to(self.dtype),
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            text_embedding_mask=batch["prompt_attention_mask"],
            encoder_hidden_states_t5=batch["prompt_embeds_2"].to(self.dtype),
            text_embedding_mask_t5=batch["prompt_attention_mask_2"],
            image_meta_size=sizes[:, [0, 1, 4, 5, 2, 3]].to(self.dtype),
            style=sizes.new_zeros(len(sizes)).long(),
            image_rotary_emb=self._rotary(noised.latents),
            return_dict=False,
        )
        return noised.compared(output[0][:, : noised.latents.shape[1]])

    def _rotary(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config = self.denoiser.config
        grid = tuple(side // config.patch_size for side in latents.shape[2:])
        region = get_resize_crop_region_for_grid(grid, 64 // config.patch_size)  # positions are those of 512 pixels
        width = self.denoiser.inner_dim // self.denoiser.num_heads
        return get_2d_rotary_pos_embed(width, region, grid, device=latents.device, output_type="pt")
