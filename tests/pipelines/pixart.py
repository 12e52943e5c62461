from __future__ import annotations

from typing import Any

from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel

from . import PIPELINES
from .parts import autoencoder, discrete, t5, t5_tokenizer


def pixart(kind: Any, **options: Any) -> Any:
    tokenizer = t5_tokenizer()
    return kind(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=autoencoder(3, shift_factor=None),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24, num_layers=1, caption_channels=12,
            out_channels=8, **options,
        ),
        scheduler=discrete(),
    )  # fmt: skip


@PIPELINES.register("pixart_alpha")
def pixart_alpha() -> PixArtAlphaPipeline:
    """Told of sizes, as its like of 1024 pixels."""
    return pixart(PixArtAlphaPipeline, sample_size=128)


@PIPELINES.register("pixart_sigma")
def pixart_sigma() -> PixArtSigmaPipeline:
    return pixart(PixArtSigmaPipeline, sample_size=16)
