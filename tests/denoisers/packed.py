"""Image transformers whose latents come packed into tokens, with a position for each."""

from __future__ import annotations

import torch

from .rows import HEADS, PROMPT, TEXT, TIME, Denoiser, given, grid, listed, without

POOLED = {"pooled_projections": (2, 10)}
FLUX = {**HEADS, "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1}
FLUX |= {"joint_attention_dim": TEXT, "axes_dims_rope": (2, 2, 4)}
"""Double blocks for image and text side by side, single blocks for both in one sequence, the text in front."""
PACKED = {"hidden_states": (2, 16, 4), **PROMPT, "timestep": TIME, "img_ids": grid(1, 4, 4)}
PACKED |= {"txt_ids": torch.zeros(5, 3)}
FLUX2 = {"img_ids": grid(1, 4, 4, 1), "txt_ids": grid(1, 1, 1, 5)}
QWEN = {**HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": TEXT}
QWEN |= {"axes_dims_rope": (4, 2, 2)}
QWEN_PACKED = {"hidden_states": (2, 16, 16), **PROMPT}
QWEN_PACKED |= {"encoder_hidden_states_mask": lambda: torch.ones(2, 5, dtype=torch.long), "timestep": TIME}
QWEN_PACKED |= {"img_shapes": [(1, 4, 4)] * 2}

PACKED_IMAGES = [
    Denoiser("flux", "FluxTransformer2DModel", FLUX | {"pooled_projection_dim": 10}, given(**PACKED, **POOLED)),
    Denoiser(
        "flux_controlnet",
        "FluxControlNetModel",
        FLUX | {"pooled_projection_dim": 10},
        given(**PACKED, **POOLED, controlnet_cond=(2, 16, 4)),
    ),
    Denoiser(
        "flux2",
        "Flux2Transformer2DModel",
        FLUX | {"axes_dims_rope": (2, 2, 2, 2)},
        given(**PACKED | FLUX2, guidance=TIME),
    ),
    Denoiser(
        "flux3",
        "Flux3Transformer2DModel",
        without(FLUX, "patch_size") | {"cond_in_channels": 4, "axes_dims_rope": (2, 2, 2, 2)},
        given(**PACKED | FLUX2, image_cond_hidden_states=(2, 16, 4), image_cond_ids=grid(1, 4, 4, 1)),
    ),
    Denoiser(
        "chroma",
        "ChromaTransformer2DModel",
        FLUX | {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        given(**PACKED),
    ),
    Denoiser("bria", "BriaTransformer2DModel", FLUX, given(**PACKED)),
    Denoiser(
        "bria_fibo",
        "BriaFiboTransformer2DModel",
        FLUX | {"joint_attention_dim": 24, "text_encoder_dim": TEXT},
        given(**PACKED | {"encoder_hidden_states": (2, 5, 24)}, text_encoder_layers=listed((2, 5, TEXT), (2, 5, TEXT))),
    ),
    Denoiser(
        "longcat_image",
        "LongCatImageTransformer2DModel",
        FLUX | {"pooled_projection_dim": 10},
        given(**PACKED, guidance=TIME),
    ),
    Denoiser("ovis_image", "OvisImageTransformer2DModel", FLUX | {"out_channels": 4}, given(**PACKED)),
    Denoiser("qwen_image", "QwenImageTransformer2DModel", QWEN, given(**QWEN_PACKED)),
    Denoiser(
        "qwen_image_controlnet", "QwenImageControlNetModel", QWEN, given(**QWEN_PACKED, controlnet_cond=(2, 16, 16))
    ),
    Denoiser(
        "qwen_image21",
        "QwenImage21Transformer2DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "context_in_dim": TEXT}
        | {"axes_dims_rope": (4, 2, 2)},
        given(
            hidden_states=(2, 16, 4),
            **PROMPT,
            timestep=TIME,
            img_shapes=[[(1, 4, 4)]] * 2,
            img_mask=torch.tensor([[False] * 5 + [True] * 4] * 2),
        ),
    ),
    Denoiser(
        "nucleus_moe",
        "NucleusMoEImageTransformer2DModel",
        QWEN | {"moe_enabled": False, "capacity_factors": [8.0, 8.0], "mlp_ratio": 12.0},
        given(**QWEN_PACKED),
    ),
    Denoiser(
        "ideogram4",
        "Ideogram4Transformer2DModel",
        {**HEADS, "in_channels": 4, "num_layers": 2, "intermediate_size": 24, "adaln_dim": 8}
        | {"llm_features_dim": TEXT, "mrope_section": (2, 1, 1)},
        given(
            hidden_states=(2, 9, 4),
            timestep=TIME,
            encoder_hidden_states=(2, 9, TEXT),
            position_ids=grid(1, 3, 3).long().expand(2, -1, -1),
            segment_ids=torch.ones(2, 9, dtype=torch.long),
            indicator=torch.tensor([[3] * 5 + [2] * 4] * 2),
        ),
    ),
    Denoiser(
        "krea2",
        "Krea2Transformer2DModel",
        {**HEADS, "in_channels": 4, "num_layers": 1, "num_key_value_heads": 1, "intermediate_size": 24}
        | {"timestep_embed_dim": 8, "text_hidden_dim": TEXT, "num_text_layers": 2}
        | {"text_num_attention_heads": 2, "text_num_key_value_heads": 1, "text_intermediate_size": 10}
        | {"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 2, 2)},
        given(
            hidden_states=(2, 16, 4),
            encoder_hidden_states=(2, 5, 2, TEXT),
            timestep=TIME,
            position_ids=torch.cat([torch.zeros(5, 3), grid(1, 4, 4)]),
        ),
    ),
]
