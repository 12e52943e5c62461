"""Z-Image: lists of images and prompts of any length, Qwen3. Time runs from noise at 0 to the image at 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from train.bases import BASES, latent_factor
from train.bases.flow import FlowBase
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("z_image", "zimagepipeline")
class ZImage(FlowBase):
    takes = FLOW | {"max_sequence_length"}
    sequence_length: ClassVar[int | None] = 512

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        return 1024, 2 * latent_factor(configs["vae"])  # 1024: the pipeline's default; no configuration says it

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Padded to one length, with the mask of what is prompt."""
        found, _ = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.text_device,
            max_sequence_length=self.length,
        )
        embeds = pad_sequence([*found, found[0].new_zeros(self.length, found[0].shape[1])], batch_first=True)[:-1]
        lengths = torch.tensor([len(own) for own in found], device=embeds.device)
        mask = torch.arange(self.length, device=embeds.device) < lengths[:, None]
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised, mask = self.noised(batch), batch["prompt_mask"].bool()
        prompts = batch["prompt_embeds"].to(self.dtype)
        made = denoiser(
            list(noised.latents.to(self.dtype).unsqueeze(2).unbind(0)),
            (1000 - noised.timesteps) / 1000,
            [own[kept] for own, kept in zip(prompts, mask, strict=True)],
            return_dict=False,
        )[0]
        return noised.compared(-torch.stack(made).squeeze(2))
