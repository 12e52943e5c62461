from __future__ import annotations

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from . import PIPELINES
from .parts import autoencoder, clip, clip_tokenizer, discrete, unet


@PIPELINES.register("stable_diffusion")
def stable_diffusion() -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(3, shift_factor=None),
        text_encoder=clip(CLIPTextModel, tokenizer, 16),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=16, attention_head_dim=2),
        scheduler=discrete(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@PIPELINES.register("sdxl")
def sdxl() -> StableDiffusionXLPipeline:
    """Latents are normalized by channel, as in some of its successors."""
    tokenizer = clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=autoencoder(3, latents_mean=[0.1, -0.2, 0.3, -0.4], latents_std=[0.5, 1.0, 1.5, 2.0]),
        text_encoder=clip(CLIPTextModel, tokenizer, 8),
        text_encoder_2=clip(CLIPTextModelWithProjection, tokenizer, 16),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=24, attention_head_dim=(1, 2), transformer_layers_per_block=(1, 1),
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
            use_linear_projection=True,
        ),
        scheduler=discrete(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )  # fmt: skip
