from __future__ import annotations

from typing import Any

from diffusers import ChromaPipeline, ChromaTransformer2DModel, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel

from . import PIPELINES
from .parts import autoencoder, clip, clip_tokenizer, flow, t5, t5_tokenizer

SHAPE: dict[str, Any] = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
    "joint_attention_dim": 12, "axes_dims_rope": (4, 2, 2),
}  # fmt: skip


@PIPELINES.register("flux")
def flux() -> FluxPipeline:
    clips, tokenizer = clip_tokenizer(), t5_tokenizer()
    return FluxPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder(3),
        text_encoder=clip(CLIPTextModel, clips, 8),
        tokenizer=clips,
        text_encoder_2=t5(tokenizer),
        tokenizer_2=tokenizer,
        transformer=FluxTransformer2DModel(**SHAPE, pooled_projection_dim=8, guidance_embeds=True),
    )


@PIPELINES.register("chroma")
def chroma() -> ChromaPipeline:
    tokenizer = t5_tokenizer()
    return ChromaPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder(3),
        text_encoder=t5(tokenizer),
        tokenizer=tokenizer,
        transformer=ChromaTransformer2DModel(
            **SHAPE, approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1
        ),
    )
