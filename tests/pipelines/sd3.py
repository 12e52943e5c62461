from __future__ import annotations

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from . import PIPELINES
from .parts import autoencoder, clip, clip_tokenizer, flow, t5, t5_tokenizer


@PIPELINES.register("sd3")
def sd3() -> StableDiffusion3Pipeline:
    clips, tokenizer = clip_tokenizer(), t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=24,
            pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        scheduler=flow(shift=3.0),
        vae=autoencoder(3),
        text_encoder=clip(CLIPTextModelWithProjection, clips, 8),
        tokenizer=clips,
        text_encoder_2=clip(CLIPTextModelWithProjection, clips, 16),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(tokenizer, width=32),
        tokenizer_3=tokenizer,
    )  # fmt: skip
