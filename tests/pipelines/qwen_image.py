from __future__ import annotations

from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from . import PIPELINES
from .parts import NARROW, flow, frame_autoencoder, qwen_tokenizer

TEMPLATE = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:"
)


@PIPELINES.register("qwen_image")
def qwen_image() -> QwenImagePipeline:
    tokenizer = qwen_tokenizer(TEMPLATE)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]}
    text = {"vocab_size": len(tokenizer), "hidden_size": 12, "num_hidden_layers": 2, "rope_parameters": rope, **NARROW}
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 12}
    text_encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=eyes))
    return QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=frame_autoencoder(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8,
            joint_attention_dim=12, axes_dims_rope=(4, 2, 2),
        ),
    )  # fmt: skip
