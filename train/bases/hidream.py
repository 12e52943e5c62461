"""HiDream-I1: two CLIPs, T5 and every layer of Llama 3; a mixture of experts that predicts backwards.

Its pipeline draws pictures of the area it was trained at, whatever side it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from train.bases import BASES, BaseOptions, latent_factor
from train.bases.flow import FlowBase
from train.bases.options import FLOW
from train.losses import Prediction


@BASES.register("hidream", "hidreamimagepipeline")
class HiDream(FlowBase):
    takes = FLOW | {"max_sequence_length"}
    sequence_length: ClassVar[int | None] = 128

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        super().__init__(pipeline, options)
        for module in pipeline.transformer.modules():
            if hasattr(module, "moe_infer"):  # it answers without gradients, unless it is told that it is trained
                module.training, module._force_inference_output = True, False

    @classmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        factor = latent_factor(configs["vae"])
        return 128 * factor, 2 * factor  # 128: the pipeline's default

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """T5's embeddings, Llama's by layer, (b, layers, n, d), and what both CLIPs pool."""
        self.warn_of_cuts(self.pipeline.tokenizer_3, prompts, self.length)
        long, _, layers, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts),
            device=self.text_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.length,
        )
        return {"prompt_embeds": long, "layer_embeds": layers.transpose(0, 1), "pooled_prompt_embeds": pooled}

    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        noised = self.noised(batch)
        made = denoiser(
            hidden_states=noised.latents.to(self.dtype),
            timesteps=noised.timesteps,
            encoder_hidden_states_t5=batch["prompt_embeds"].to(self.dtype),
            encoder_hidden_states_llama3=batch["layer_embeds"].to(self.dtype).transpose(0, 1),
            pooled_embeds=batch["pooled_prompt_embeds"].to(self.dtype),
            return_dict=False,
        )[0]
        return noised.compared(-made)
