"""UNets, and the ControlNets that are halves of them."""

from __future__ import annotations

import torch

from .rows import PROMPT, STEP, TEXT, TIME, Denoiser, given, ones, without

UNET = {"sample_size": 8, "in_channels": 4, "block_out_channels": (8, 16)}
UNET |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1}
UNET |= {"norm_num_groups": 4, "cross_attention_dim": TEXT, "attention_head_dim": 2}
UP = {"out_channels": 4, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
CONTROL = without(UNET, "sample_size") | {"conditioning_embedding_out_channels": (4, 8)}
SDXL = {"attention_head_dim": (2, 4), "use_linear_projection": True}
SDXL |= {"transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time"}
SDXL |= {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 8 + 6 * 4}
ADDED_KV = {"down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D")}
ADDED_KV |= {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}
ADDED_KV |= {"up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")}
ADDED_KV |= {"resnet_time_scale_shift": "scale_shift"}


def blocks(kind: str) -> dict[str, tuple[str, str]]:
    """Block types of a two-level UNet that exists once more for video."""
    return {
        "down_block_types": (f"CrossAttnDownBlock{kind}", f"DownBlock{kind}"),
        "up_block_types": (f"UpBlock{kind}", f"CrossAttnUpBlock{kind}"),
    }


IMAGE = {"sample": (2, 4, 8, 8), "timestep": STEP, **PROMPT}
MICRO = {"added_cond_kwargs": {"text_embeds": (2, 8), "time_ids": (2, 6)}}
VIDEO = IMAGE | {"sample": (2, 4, 3, 8, 8)}
HINT = {"controlnet_cond": (2, 3, 16, 16)}
GLIGEN = {"gligen": {"boxes": (2, 3, 4), "positive_embeddings": (2, 3, TEXT), "masks": ones(2, 3)}}

UNETS = [
    Denoiser("unet_sd15", "UNet2DConditionModel", UNET | UP, given(**IMAGE)),
    Denoiser(
        "unet_sd21",
        "UNet2DConditionModel",
        UNET | UP | {"use_linear_projection": True, "upcast_attention": True, "attention_head_dim": (2, 4)},
        given(**IMAGE),
    ),
    Denoiser("unet_sdxl", "UNet2DConditionModel", UNET | UP | SDXL, given(**IMAGE, **MICRO)),
    Denoiser(
        "unet_gligen",
        "UNet2DConditionModel",
        UNET | UP | {"attention_type": "gated"},
        given(**IMAGE, cross_attention_kwargs=GLIGEN),
    ),
    Denoiser(
        "unet_only_cross_attention",
        "UNet2DConditionModel",
        UNET | UP | {"only_cross_attention": True, "dual_cross_attention": False},
        given(**IMAGE),
    ),
    Denoiser(
        "unet_deepfloyd",
        "UNet2DConditionModel",
        UNET
        | UP
        | ADDED_KV
        | {"encoder_hid_dim": 10, "addition_embed_type": "text", "addition_embed_type_num_heads": 2}
        | {"cross_attention_dim": 32, "cross_attention_norm": "group_norm", "only_cross_attention": True},
        given(**IMAGE | {"encoder_hidden_states": (2, 5, 10)}),
    ),
    Denoiser(
        "unet_kandinsky22",
        "UNet2DConditionModel",
        UNET
        | UP
        | ADDED_KV
        | {"encoder_hid_dim": 10, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"},
        given(**IMAGE | {"encoder_hidden_states": None}, added_cond_kwargs={"image_embeds": (2, 10)}),
    ),
    Denoiser(
        "unet_audioldm",
        "UNet2DConditionModel",
        UNET
        | UP
        | {"class_embed_type": "simple_projection", "class_embeddings_concat": True}
        | {"projection_class_embeddings_input_dim": 8, "cross_attention_dim": (8, 16)},
        given(**IMAGE | {"encoder_hidden_states": None}, class_labels=(2, 8)),
    ),
    Denoiser(
        "audioldm2",
        "AudioLDM2UNet2DConditionModel",
        UNET | UP | {"cross_attention_dim": ((None, 10, TEXT),) * 2},
        given(**IMAGE | {"encoder_hidden_states": (2, 5, 10)}, encoder_hidden_states_1=(2, 4, TEXT)),
    ),
    Denoiser(
        "unet_unconditional",
        "UNet2DModel",
        without(UNET, "cross_attention_dim")
        | {"out_channels": 4}
        | {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}
        | {"up_block_types": ("UpBlock2D", "AttnUpBlock2D")},
        given(sample=(2, 4, 8, 8), timestep=STEP),
    ),
    Denoiser(
        "unet_score_sde",
        "UNet2DModel",
        {"in_channels": 3, "out_channels": 3, "sample_size": 8, "block_out_channels": (32, 32)}
        | {"layers_per_block": 1, "time_embedding_type": "fourier", "norm_num_groups": None}
        | {"attention_head_dim": 4, "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D")}
        | {"up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D")},
        given(sample=(2, 3, 8, 8), timestep=TIME),
    ),
    Denoiser("unet_3d", "UNet3DConditionModel", UNET | UP | blocks("3D"), given(**VIDEO)),
    Denoiser(
        "i2vgen_xl",
        "I2VGenXLUNet",
        UNET | UP | blocks("3D"),
        given(**VIDEO, fps=torch.tensor([8, 8]), image_latents=(2, 4, 3, 8, 8), image_embeddings=(2, TEXT)),
    ),
    Denoiser(
        "animatediff",
        "UNetMotionModel",
        without(UNET, "attention_head_dim")
        | UP
        | blocks("Motion")
        | {"num_attention_heads": 2, "motion_num_attention_heads": 2},
        given(**VIDEO | {"encoder_hidden_states": (6, 5, TEXT)}),
    ),
    Denoiser(
        "stable_video_diffusion",
        "UNetSpatioTemporalConditionModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64)}
        | {**blocks("SpatioTemporal"), "layers_per_block": 1, "cross_attention_dim": TEXT}
        | {"num_attention_heads": 2, "addition_time_embed_dim": 4}
        | {"projection_class_embeddings_input_dim": 12},
        given(sample=(1, 2, 4, 8, 8), timestep=STEP[:1], encoder_hidden_states=(1, 1, TEXT), added_time_ids=(1, 3)),
    ),
    Denoiser(
        "kandinsky3",
        "Kandinsky3UNet",
        {"in_channels": 4, "time_embedding_dim": 8, "groups": 2, "attention_head_dim": 4}
        | {"layers_per_block": 2, "block_out_channels": (8, 16), "cross_attention_dim": 4}
        | {"encoder_hid_dim": TEXT},
        given(**IMAGE, encoder_attention_mask=ones(2, 5)),
    ),
    Denoiser(
        "dreamlite",
        "DreamLiteUNetModel",
        {"sample_size": 8}
        | {"down_block_types": ("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D")}
        | {"up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D")}
        | {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
        | {"cross_attention_dim": TEXT, "attention_head_dim": 8},
        given(**IMAGE),
    ),
    Denoiser(
        "stable_cascade",
        "StableCascadeUNet",
        {"conditioning_dim": 8, "block_out_channels": (8, 16), "num_attention_heads": (2, 2)}
        | {"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1)}
        | {"clip_text_in_channels": TEXT, "clip_text_pooled_in_channels": 10, "clip_image_in_channels": 14}
        | {"clip_seq": 2},
        given(
            sample=(2, 16, 8, 8),
            timestep_ratio=STEP / 1000,
            clip_text_pooled=(2, 1, 10),
            clip_text=(2, 5, TEXT),
            clip_img=(2, 1, 14),
        ),
    ),
    Denoiser(
        "amused",
        "UVit2DModel",
        {"hidden_size": 16, "cond_embed_dim": 6, "micro_cond_encode_dim": 4, "micro_cond_embed_dim": 20}
        | {"encoder_hidden_size": TEXT, "vocab_size": 32, "codebook_size": 24, "in_channels": 16}
        | {"block_out_channels": 16, "num_res_blocks": 1, "block_num_heads": 2, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "intermediate_size": 24, "sample_size": 8},
        given(
            input_ids=lambda: torch.randint(0, 24, (2, 8, 8)),
            encoder_hidden_states=(2, 5, TEXT),
            pooled_text_emb=(2, 6),
            micro_conds=(2, 5),
        ),
    ),
    Denoiser("controlnet", "ControlNetModel", CONTROL, given(**IMAGE, **HINT)),
    Denoiser("controlnet_sdxl", "ControlNetModel", CONTROL | SDXL, given(**IMAGE, **HINT, **MICRO)),
    Denoiser(
        "controlnet_union",
        "ControlNetUnionModel",
        CONTROL | SDXL | {"num_control_type": 2, "num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8},
        given(
            **IMAGE,
            **MICRO,
            controlnet_cond=lambda: [torch.randn(2, 3, 16, 16)],
            control_type=torch.tensor([[1.0, 0.0]] * 2),
            control_type_idx=[0],
        ),
    ),
    Denoiser(
        "controlnet_xs",
        "UNetControlNetXSModel",
        without(UNET | UP, "in_channels", "out_channels", "layers_per_block", "attention_head_dim")
        | {"num_attention_heads": 2, "ctrl_conditioning_embedding_out_channels": (4, 4)}
        | {"ctrl_block_out_channels": (4, 8), "ctrl_num_attention_heads": 2, "ctrl_max_norm_num_groups": 2},
        given(**IMAGE, **HINT),
    ),
    Denoiser(
        "sparse_controlnet",
        "SparseControlNetModel",
        CONTROL | {"down_block_types": blocks("Motion")["down_block_types"], "motion_num_attention_heads": 2},
        given(
            **VIDEO | {"encoder_hidden_states": (6, 5, TEXT)},
            controlnet_cond=(2, 4, 3, 8, 8),
            conditioning_mask=(2, 1, 3, 8, 8),
        ),
    ),
]
