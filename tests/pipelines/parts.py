"""Parts that several tiny pipelines share: tokenizers trained on a few words, language models, autoencoders."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5EncoderModel,
    T5Tokenizer,
)

from train.world.tokens import build_tokenizer

WORDS = "a photo of sks cat red blue in under water desert studio"
NARROW = {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048}
NARROW |= {"bos_token_id": 0, "eos_token_id": 0}
"""A language model small enough for tests, whatever its class."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def _trained(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    """The same kind of tokenizer, with a token for each frequent word of `texts`."""
    words = [" " + word for text in (WORDS, *texts) for word in text.split()]
    return tokenizer.train_new_from_iterator(words * 2, 900, show_progress=False, **options)


def gemma_tokenizer(*texts: str) -> PreTrainedTokenizerBase:
    """A byte-pair tokenizer of whole words that opens every text with <bos>."""
    tokenizer = _trained(GemmaTokenizer(add_bos_token=True), texts)
    tokenizer.add_bos_token = True
    return tokenizer


def qwen_tokenizer(*texts: str) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with the chat template of the Qwen family."""
    tokenizer = _trained(Qwen2Tokenizer(), texts, new_special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT
    return tokenizer


def gemma(tokenizer: PreTrainedTokenizerBase) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=12, num_hidden_layers=2, head_dim=6, sliding_window=2048, **NARROW
    )
    return Gemma2Model(config).eval()


def qwen3(tokenizer: PreTrainedTokenizerBase, layers: int) -> Qwen3Config:
    return Qwen3Config(vocab_size=len(tokenizer), hidden_size=12, num_hidden_layers=layers, head_dim=6, **NARROW)


def qwen3_vl(tokenizer: PreTrainedTokenizerBase, layers: int) -> Qwen3VLModel:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1], "mrope_interleaved": True}
    text = {"vocab_size": len(tokenizer), "hidden_size": 12, "num_hidden_layers": layers, "head_dim": 6, **NARROW}
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 12}
    config = Qwen3VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=eyes)
    return Qwen3VLModel(config).eval()


def autoencoder(levels: int, latent_channels: int = 4, **options: Any) -> AutoencoderKL:
    """Halves the side `levels` - 1 times. Mean and spread of the latents are unlike those of the standard normal."""
    options = {"scaling_factor": 0.7, "shift_factor": 0.3, **options}
    return AutoencoderKL(**_blocks(levels), latent_channels=latent_channels, sample_size=32, **options).eval()


def _blocks(levels: int) -> dict[str, Any]:
    down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
    shared = {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8,) * levels}
    return {"down_block_types": down, "up_block_types": up, **shared}


def flux2_autoencoder() -> AutoencoderKLFlux2:
    """A factor of 8, with running statistics of its own."""
    vae = AutoencoderKLFlux2(**_blocks(4), latent_channels=4, sample_size=32, batch_norm_eps=0.1)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()


def frame_autoencoder() -> AutoencoderKLQwenImage:
    """A VAE of videos with a factor of 4."""
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4], latents_std=[0.5, 1.0, 1.5, 2.0],
    ).eval()  # fmt: skip


def clip_tokenizer(length: int = 77) -> CLIPTokenizer:
    """One token for each word, padded to `length`."""
    tokenizer = build_tokenizer(tuple(WORDS.split()))
    tokenizer.model_max_length = length
    return tokenizer


def clip(kind: Any, tokenizer: CLIPTokenizer, width: int) -> Any:
    """A CLIPTextModel or CLIPTextModelWithProjection of this width."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, projection_dim=width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return kind(config).eval()


def t5_tokenizer() -> T5Tokenizer:
    """Whole words, and letters for what is no known word: nothing trained, for that is not the same twice."""
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words, letters = [f"▁{word}" for word in WORDS.split()], ["▁", *string.ascii_lowercase]
    known = {**dict.fromkeys(letters, -9.0), **dict.fromkeys(words, -2.0)}
    return T5Tokenizer(vocab=[*marks, *known.items()])


def t5(tokenizer: T5Tokenizer, kind: Any = T5EncoderModel, width: int = 12) -> Any:
    """A T5 encoder or one of its kin."""
    config = kind.config_class(vocab_size=len(tokenizer), d_model=width, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    return kind(config).eval()


def unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **options,
    )  # fmt: skip


def discrete(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, **options)


def flow(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**options)
