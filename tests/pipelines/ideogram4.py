from __future__ import annotations

from diffusers import Ideogram4Pipeline, Ideogram4Transformer2DModel

from . import PIPELINES
from .parts import flow, flux2_autoencoder, qwen3_vl, qwen_tokenizer


def transformer() -> Ideogram4Transformer2DModel:
    return Ideogram4Transformer2DModel(
        in_channels=16, num_layers=2, num_attention_heads=2, attention_head_dim=8, intermediate_size=24, adaln_dim=8,
        llm_features_dim=13 * 12, mrope_section=(2, 1, 1),
    )  # fmt: skip


@PIPELINES.register("ideogram4")
def ideogram4() -> Ideogram4Pipeline:
    tokenizer = qwen_tokenizer()
    return Ideogram4Pipeline(
        scheduler=flow(),
        vae=flux2_autoencoder(),
        text_encoder=qwen3_vl(tokenizer, 36),
        tokenizer=tokenizer,
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )
