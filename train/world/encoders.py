"""The two encoders of the ruler as stock transformers models: an identity encoder (DINO's role) and a tiny CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
)

from train.world.tokens import MAX_LENGTH, save_tokenizer

ENCODER_SIZE = 96
CLIP_SIZE = 48
_BILINEAR, _BICUBIC = 2, 3  # Pillow's numbers, which preprocessor_config.json uses


def build_encoder() -> ResNetModel:
    """(b, 3, 96, 96) in [-1, 1] -> pooler_output (b, 160, 1, 1); compare by cosine."""
    return ResNetModel(
        ResNetConfig(embedding_size=32, hidden_sizes=(32, 64, 128, 160), depths=(1, 1, 1, 1), layer_type="basic")
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """(b, 3, 48, 48) in [-1, 1] and (b, ≤ 32) token ids -> embeddings (b, 96) of one space."""
    vision = CLIPVisionConfig(
        image_size=CLIP_SIZE,
        patch_size=6,
        hidden_size=112,
        intermediate_size=224,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=96))


def resize(images: Tensor, size: int) -> Tensor:
    """(b, 3, h, w) -> (b, 3, size, size) as the image processors do it: bilinear up, bicubic down, antialiased."""
    if images.shape[-1] == size:
        return images
    mode = "bilinear" if size == ENCODER_SIZE else "bicubic"
    return F.interpolate(images, (size, size), mode=mode, antialias=True, align_corners=False).clamp(-1, 1)


def identity_features(encoder: ResNetModel, images: Tensor) -> Tensor:
    """(b, 3, h, w) in [-1, 1] -> unit vectors (b, 160)."""
    return F.normalize(encoder(resize(images, ENCODER_SIZE)).pooler_output.flatten(1), dim=-1)


def image_features(clip: CLIPModel, images: Tensor) -> Tensor:
    """(b, 3, h, w) in [-1, 1] -> unit vectors (b, 96)."""
    return F.normalize(clip.get_image_features(resize(images, CLIP_SIZE)).pooler_output, dim=-1)


def text_features(clip: CLIPModel, tokens: Tensor) -> Tensor:
    """(b, length) token ids -> unit vectors (b, 96)."""
    return F.normalize(clip.get_text_features(tokens).pooler_output, dim=-1)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Texts -> (b, ≤ 32) token ids, padded to the longest."""
    return tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").input_ids


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _save_half(model: PreTrainedModel, folder: Path) -> None:
    """fp16 weights, loaded as fp32; the model then holds what was saved."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder, safe_serialization=True)
    model.float()
    config = folder / "config.json"  # transformers loads in the type named here
    content = json.loads(config.read_text()) | {"dtype": "float32"}
    for part in ("text_config", "vision_config"):
        if part in content:
            content[part]["dtype"] = "float32"
    _write_json(config, content)


def _preprocessor(kind: str, size: dict, resample: int) -> dict:
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }


def save_encoder(encoder: ResNetModel, folder: Path) -> None:
    """A folder for `AutoModel` and `AutoImageProcessor`."""
    _save_half(encoder, folder)
    square = {"height": ENCODER_SIZE, "width": ENCODER_SIZE}
    _write_json(folder / "preprocessor_config.json", _preprocessor("ViTImageProcessor", square, _BILINEAR))


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """A folder for `CLIPModel` and `CLIPProcessor`."""
    _save_half(clip, folder)
    save_tokenizer(tokenizer, folder)
    config = _preprocessor("CLIPImageProcessor", {"shortest_edge": CLIP_SIZE}, _BICUBIC)
    square = {"height": CLIP_SIZE, "width": CLIP_SIZE}
    config |= {"do_center_crop": True, "crop_size": square, "processor_class": "CLIPProcessor"}
    _write_json(folder / "preprocessor_config.json", config)


def frozen(model: torch.nn.Module) -> torch.nn.Module:
    """The model for measuring: no gradients, no batch statistics."""
    return model.eval().requires_grad_(False)
