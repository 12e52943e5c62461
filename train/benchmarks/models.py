"""UNets to measure on, with random numbers: what a step costs depends on shapes alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

POCKET = Path(__file__).resolve().parents[2] / "pipelines" / "pocket" / "unet" / "config.json"
SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
"""Configuration of the UNet of Stable Diffusion 1.5."""

SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""Configuration of the UNet of Stable Diffusion XL."""

PRESETS = ("sd15", "sdxl", "pocket")


def unet(preset: str, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A frozen UNet of the shapes of `preset`; on the meta device it has no numbers."""
    from diffusers import UNet2DConditionModel

    configs = {"sd15": SD15, "sdxl": SDXL}
    config = configs[preset] if preset in configs else json.loads(POCKET.read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    model = nn.Module.to(model, dtype).requires_grad_(False).eval()
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            # Norms are ones and zeros, the rest keeps the size of activations: a step must not meet NaN or denormals.
            if value.dim() > 1:
                value.normal_(0, value[0].numel() ** -0.5, generator=generator)
            else:
                value.fill_(float("norm" in name and name.endswith("weight")))
    return model


def same_numbers(model: nn.Module) -> Any:
    """A copy of `model` to adapt, which shares its frozen parameters and takes no memory."""
    return copy.deepcopy(model, {id(value): value for value in model.parameters()})


def inputs(model: Any, batch: int, side: int | None = None) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments of a forward at `side` latents (default: what the model is made for), 77 tokens of prompt."""
    config, like = model.config, next(model.parameters())
    side = side or config.sample_size
    generator = None if like.is_meta else torch.Generator(like.device).manual_seed(1)
    where = {"device": like.device, "dtype": like.dtype, "generator": generator}
    noisy = torch.randn(batch, config.in_channels, side, side, **where)
    prompt = torch.randn(batch, 77, config.cross_attention_dim, **where)
    levels = torch.linspace(900, 100, batch, device=like.device).long()
    extra: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        times = torch.tensor([[8.0 * side] * 6] * batch, device=like.device)
        extra["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, pooled, **where), "time_ids": times}
    return (noisy, levels, prompt), extra
