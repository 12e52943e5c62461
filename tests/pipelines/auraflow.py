from __future__ import annotations

from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
from transformers import UMT5EncoderModel

from . import PIPELINES
from .parts import autoencoder, flow, t5, t5_tokenizer


@PIPELINES.register("auraflow")
def auraflow() -> AuraFlowPipeline:
    tokenizer = t5_tokenizer()
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer, UMT5EncoderModel),
        vae=autoencoder(3, shift_factor=None),
        transformer=AuraFlowTransformer2DModel(
            sample_size=16, num_attention_heads=2, attention_head_dim=8, num_mmdit_layers=1, num_single_dit_layers=1,
            joint_attention_dim=12, caption_projection_dim=16, pos_embed_max_size=64, in_channels=4, out_channels=4,
        ),
        scheduler=flow(shift=1.73),
    )  # fmt: skip
