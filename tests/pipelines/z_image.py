from __future__ import annotations

from diffusers import ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Model

from . import PIPELINES
from .parts import autoencoder, flow, qwen3, qwen_tokenizer


@PIPELINES.register("z_image")
def z_image() -> ZImagePipeline:
    tokenizer = qwen_tokenizer()
    return ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=autoencoder(3),
        text_encoder=Qwen3Model(qwen3(tokenizer, 2)).eval(),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
            axes_dims=[4, 2, 2], axes_lens=[600, 16, 16],
        ),
    )  # fmt: skip
