"""Tiny random encoders of every kind that the ruler meets, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    ConvNextImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

POCKET = Path(__file__).parents[1] / "pipelines" / "pocket"
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
VISION = {**SMALL, "image_size": 48, "patch_size": 8}
SIDE = {"height": 48, "width": 48}


def save_encoders(folder: Path) -> dict[str, Path]:
    """Write a CLIP, a ViT and a DINOv2 with a class token, a convolutional net, and a model without eyes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 32, **special}
        convolutional = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
        made = {
            "clip": (clip, CLIPImageProcessorPil(size=SIDE, crop_size=SIDE), tokenizer),
            "vit": (ViTModel(ViTConfig(**VISION)), ViTImageProcessorPil(size=SIDE)),
            "dino": (Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2)), ViTImageProcessorPil(size=SIDE)),
            "cnn": (ResNetModel(convolutional), ConvNextImageProcessorPil(size={"shortest_edge": 48})),
            "bert": (BertModel(BertConfig(**SMALL)),),
        }
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(folder / name)
    return {name: folder / name for name in made}
