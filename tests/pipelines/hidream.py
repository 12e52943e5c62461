from __future__ import annotations

from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
from transformers import CLIPTextModelWithProjection, LlamaConfig, LlamaForCausalLM

from . import PIPELINES
from .parts import NARROW, autoencoder, clip, clip_tokenizer, flow, qwen_tokenizer, t5, t5_tokenizer


@PIPELINES.register("hidream")
def hidream() -> HiDreamImagePipeline:
    clips, long, large = clip_tokenizer(218), t5_tokenizer(), qwen_tokenizer()
    llama = LlamaConfig(vocab_size=len(large), hidden_size=12, num_hidden_layers=2, head_dim=6, **NARROW)
    return HiDreamImagePipeline(
        scheduler=flow(shift=3.0),
        vae=autoencoder(3),
        text_encoder=clip(CLIPTextModelWithProjection, clips, 8),
        tokenizer=clips,
        text_encoder_2=clip(CLIPTextModelWithProjection, clips, 16),
        tokenizer_2=clips,
        text_encoder_3=t5(long),
        tokenizer_3=long,
        text_encoder_4=LlamaForCausalLM(llama).eval(),
        tokenizer_4=large,
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=8,
            caption_channels=[12, 12], text_emb_dim=24, num_routed_experts=2, num_activated_experts=2,
            axes_dims_rope=(4, 2, 2), max_resolution=(16, 16), llama_layers=(0, 1),
        ).eval(),
    )  # fmt: skip
