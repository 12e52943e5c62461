from __future__ import annotations

from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from . import PIPELINES
from .parts import WORDS, autoencoder, flow


@PIPELINES.register("auraflow")
def auraflow() -> AuraFlowPipeline:
    tokenizer = T5Tokenizer().train_new_from_iterator(WORDS.split() * 3, 200, show_progress=False)
    text = UMT5Config(vocab_size=len(tokenizer), d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=autoencoder(3, shift_factor=None),
        transformer=AuraFlowTransformer2DModel(
            sample_size=16, num_attention_heads=2, attention_head_dim=8, num_mmdit_layers=1, num_single_dit_layers=1,
            joint_attention_dim=12, caption_projection_dim=16, pos_embed_max_size=64, in_channels=4, out_channels=4,
        ),
        scheduler=flow(shift=1.73),
    )  # fmt: skip
