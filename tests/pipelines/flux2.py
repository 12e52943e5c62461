from __future__ import annotations

from typing import Any

from diffusers import Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen3ForCausalLM,
)

from . import PIPELINES
from .parts import NARROW, flow, flux2_autoencoder, qwen3, qwen_tokenizer


def transformer(**options: Any) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=8,
        joint_attention_dim=3 * 12, timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2), **options,
    )  # fmt: skip


@PIPELINES.register("flux2")
def flux2() -> Flux2Pipeline:
    """FLUX.2 dev. The tokenizer stands for the processor of the same name, which reads pictures too."""
    tokenizer = qwen_tokenizer(SYSTEM_MESSAGE)
    text = MistralConfig(vocab_size=len(tokenizer), hidden_size=12, num_hidden_layers=30, head_dim=6, **NARROW)
    eyes = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    return Flux2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=eyes)).eval(),
        tokenizer=tokenizer,
        transformer=transformer(),
    )


@PIPELINES.register("flux2_klein")
def flux2_klein() -> Flux2KleinPipeline:
    tokenizer = qwen_tokenizer()
    return Flux2KleinPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=Qwen3ForCausalLM(qwen3(tokenizer, 27)).eval(),
        tokenizer=tokenizer,
        transformer=transformer(guidance_embeds=False),
    )
