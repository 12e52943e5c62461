from __future__ import annotations

from diffusers import HunyuanDiT2DModel, HunyuanDiTPipeline
from transformers import BertConfig, BertModel, BertTokenizer

from . import PIPELINES
from .parts import WORDS, autoencoder, discrete, t5, t5_tokenizer


@PIPELINES.register("hunyuan_dit")
def hunyuan_dit() -> HunyuanDiTPipeline:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    bert, tokenizer = BertTokenizer({word: i for i, word in enumerate(entries)}), t5_tokenizer()
    text = BertConfig(
        vocab_size=len(entries), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=77,
    )  # fmt: skip
    return HunyuanDiTPipeline(
        vae=autoencoder(4, shift_factor=None),  # the pipeline takes a factor of 8 for granted
        text_encoder=BertModel(text).eval(),
        tokenizer=bert,
        transformer=HunyuanDiT2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=16,
            num_layers=2, cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=16,
        ),
        scheduler=discrete(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5(tokenizer, width=16),
        tokenizer_2=tokenizer,
    )  # fmt: skip
