"""Numbers of trained values on the UNets of Stable Diffusion 1.5 and XL: those that the papers print, where they do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffusion_adapters.adapter import FAMILIES
from diffusion_adapters.adapter_set import AdapterSet

UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
}
SHAPES = {  # (out, in): how many projections
    "sd15": {(320, 320): 30, (320, 768): 10, (640, 640): 30, (640, 768): 10, (1280, 1280): 36, (1280, 768): 12},
    "sdxl": {(640, 640): 60, (640, 2048): 20, (1280, 1280): 360, (1280, 2048): 120},
}
RING = {"residual": "tensor_ring"}
NONE = {"transform_rank": 0}

COUNTS = [
    ("sd15", "lora", {"rank": 1}, 199_296),
    ("sd15", "lora", {"rank": 4}, 797_184),  # paper 0.80 M
    ("sdxl", "lora", {"rank": 1}, 1_451_520),
    ("sdxl", "lora", {"rank": 4}, 5_806_080),
    ("sd15", "tlora", {"transform_rank": 1, "rank": 1}, 235_360),
    ("sd15", "tlora", {"transform_rank": 1, "rank": 4}, 833_248),
    ("sd15", "tlora", {"transform_rank": 2, "rank": 4}, 941_440),  # TLoRA*(2, 4), paper 0.94 M
    ("sd15", "tlora", {"transform_rank": 1, "rank": 2, **RING}, 64_512),
    ("sd15", "tlora", {"transform_rank": 2, "rank": 6, **RING}, 400_288),  # TLoRA(2, 6), paper 0.40 M
    ("sd15", "tlora", {"rank": 2, **NONE, **RING}, 28_448),
    ("sd15", "tlora", {"rank": 4, **NONE, **RING}, 113_792),
    ("sd15", "tlora", {"rank": 6, **NONE, **RING}, 256_032),
    ("sdxl", "tlora", {"transform_rank": 1, "rank": 1}, 1_697_040),
    ("sdxl", "tlora", {"transform_rank": 1, "rank": 4}, 6_051_600),
    ("sdxl", "tlora", {"transform_rank": 2, "rank": 4}, 6_788_160),
    ("sdxl", "tlora", {"transform_rank": 1, "rank": 2, **RING}, 396_720),  # TLoRA(1, 2), paper 0.4 M
    ("sdxl", "tlora", {"transform_rank": 2, "rank": 6, **RING}, 2_342_880),
    ("sd15", "wara", {"rank": 1, "shared": True}, 99_648),
    ("sd15", "wara", {"rank": 4, "shared": True}, 398_592),
    ("sd15", "wara", {"rank": 4}, 1_594_368),
    ("sd15", "wara", {"rank": 4, "level": 2}, 1_992_960),
    ("sdxl", "wara", {"rank": 4, "shared": True}, 2_903_040),
    ("sdxl", "wara", {"rank": 4}, 11_612_160),
    ("sdxl", "wara", {"rank": 4, "level": 2}, 14_515_200),
    ("sd15", "loldu", {"rank": 32}, 4_096),
    ("sdxl", "loldu", {"rank": 32}, 17_920),
]


@pytest.fixture(scope="module")
def shapes() -> dict[str, Counter[tuple[int, int]]]:
    """Shapes of all attention projections, of models that take no memory."""
    found = {}
    for name, config in UNETS.items():
        with torch.device("meta"):
            unet = UNet2DConditionModel(**config)
        bases = [projection.base for projection in AdapterSet(unet).projections().values()]
        found[name] = Counter((base.out_features, base.in_features) for base in bases)
    return found


def test_shapes(shapes: dict[str, Counter[tuple[int, int]]]) -> None:
    assert shapes == SHAPES
    assert {name: sum(counter.values()) for name, counter in shapes.items()} == {"sd15": 128, "sdxl": 560}


@pytest.mark.parametrize(("unet", "family", "options", "expected"), COUNTS)
def test_count(
    unet: str, family: str, options: dict[str, Any], expected: int, shapes: dict[str, Counter[tuple[int, int]]]
) -> None:
    kind = FAMILIES[family]
    config = kind.Config(**options)
    total = 0
    for shape, times in shapes[unet].items():
        adapter = kind(torch.empty(shape, device="meta"), config)
        total += times * sum(value.numel() for value in adapter.parameters())
    assert total == expected


@pytest.mark.parametrize(
    ("family", "shape", "options", "expected"),
    [
        ("tlora", (1280, 1280), {"transform_rank": 1, "rank": 1}, 2_980),
        ("tlora", (1280, 1280), {"transform_rank": 2, "rank": 6, **RING}, 4_128),
        ("tlora", (320, 768), {"transform_rank": 2, "rank": 6, **RING}, 2_888),
        ("wara", (1280, 1280), {"rank": 4, "shared": True}, 5_120),
        ("wara", (1280, 1280), {"rank": 4}, 20_480),
    ],
)
def test_count_of_one_projection(family: str, shape: tuple[int, int], options: dict[str, Any], expected: int) -> None:
    adapter = FAMILIES[family](torch.empty(shape, device="meta"), FAMILIES[family].Config(**options))
    assert sum(value.numel() for value in adapter.parameters()) == expected
