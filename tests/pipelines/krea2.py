from __future__ import annotations

from diffusers import Krea2Pipeline, Krea2Transformer2DModel

from . import PIPELINES
from .parts import flow, frame_autoencoder, qwen3_vl, qwen_tokenizer
from .qwen_image import TEMPLATE


@PIPELINES.register("krea2")
def krea2() -> Krea2Pipeline:
    tokenizer = qwen_tokenizer(TEMPLATE)
    return Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=frame_autoencoder(),
        text_encoder=qwen3_vl(tokenizer, 3),
        tokenizer=tokenizer,
        transformer=Krea2Transformer2DModel(
            in_channels=16, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_key_value_heads=1,
            intermediate_size=24, timestep_embed_dim=8, text_hidden_dim=12, num_text_layers=2,
            text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=10,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
        ),
        text_encoder_select_layers=(1, 3),
    )  # fmt: skip
