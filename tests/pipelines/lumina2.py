from __future__ import annotations

from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

from . import PIPELINES
from .parts import autoencoder, flow, gemma, gemma_tokenizer

SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment "
    "based on textual prompts or user prompts. <Prompt Start> "
)


@PIPELINES.register("lumina2")
def lumina2() -> Lumina2Pipeline:
    tokenizer = gemma_tokenizer(SYSTEM)
    return Lumina2Pipeline(
        tokenizer=tokenizer,
        text_encoder=gemma(tokenizer),
        vae=autoencoder(4),  # the pipeline takes a factor of 8 for granted
        transformer=Lumina2Transformer2DModel(
            sample_size=8, in_channels=4, hidden_size=16, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
            num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(300, 16, 16), cap_feat_dim=12,
        ),
        scheduler=flow(shift=6.0),
    )  # fmt: skip
