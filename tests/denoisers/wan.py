"""Wan, HunyuanVideo and their relatives."""

from __future__ import annotations

import torch

from .rows import HEADS, PROMPT, STEP, TEXT, TIME, Denoiser, given, ones, without

VIDEO = {"hidden_states": (2, 4, 2, 4, 4), "timestep": STEP}
MASK = {"encoder_attention_mask": ones(2, 5)}
WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
WAN |= {"text_dim": TEXT, "freq_dim": 16, "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 32}
IMAGE_TO_VIDEO = {"image_dim": 10, "added_kv_proj_dim": 24}
"""Wan tells tokens of the image from those of the text by counting: it takes exactly 512 of text."""
ANYFLOW = WAN | {"gate_value": 0.25}
ANYFLOW_INPUTS = {"hidden_states": (2, 2, 4, 4, 4), "timestep": STEP[:, None].expand(2, 2)}
ANYFLOW_INPUTS |= {"r_timestep": STEP[:, None].expand(2, 2) / 2, **PROMPT}
HUNYUAN = {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1}
HUNYUAN |= {"num_refiner_layers": 1, "patch_size": 2, "text_embed_dim": TEXT, "pooled_projection_dim": 10}
HUNYUAN |= {"rope_axes_dim": (2, 2, 4)}
HUNYUAN_INPUTS = {**VIDEO, **PROMPT, **MASK, "pooled_projections": (2, 10)}


def _reference_pass() -> dict[str, object]:
    """WanAnimate 2 fills a cache from the reference frames with the same blocks that later denoise."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {"kv_cache": WanAnimate2KVCache(1), "kv_cache_mode": "extract", "seq_len": 8}


WANS = [
    Denoiser("wan", "WanTransformer3DModel", WAN, given(**VIDEO, **PROMPT)),
    Denoiser(
        "wan_i2v",
        "WanTransformer3DModel",
        WAN | IMAGE_TO_VIDEO,
        given(**VIDEO, encoder_hidden_states=(2, 512, TEXT), encoder_hidden_states_image=(2, 3, 10)),
    ),
    Denoiser(
        "wan_vace",
        "WanVACETransformer3DModel",
        WAN | {"vace_layers": [0], "vace_in_channels": 6},
        given(**VIDEO, **PROMPT, control_hidden_states=(2, 6, 2, 4, 4)),
    ),
    Denoiser(
        "wan_animate",
        "WanAnimateTransformer3DModel",
        WAN
        | {"in_channels": 12, "latent_channels": 4, "image_dim": 10, "added_kv_proj_dim": 24}
        | {"motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}, "motion_encoder_size": 16}
        | {"motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8, "face_encoder_hidden_dim": 8}
        | {"face_encoder_num_heads": 2, "inject_face_latents_blocks": 1},
        given(
            **VIDEO | {"hidden_states": (1, 12, 3, 4, 4), "timestep": STEP[:1]},
            encoder_hidden_states=(1, 512, TEXT),
            encoder_hidden_states_image=(1, 3, 10),
            pose_hidden_states=(1, 4, 2, 4, 4),
            face_pixel_values=(1, 3, 5, 16, 16),
        ),
    ),
    Denoiser(
        "wan_animate2",
        "WanAnimate2Transformer3DModel",
        {"text_len": 5, "in_dim": 8, "dim": 24, "ffn_dim": 32, "freq_dim": 16, "text_dim": TEXT}
        | {"out_dim": 4}
        | {"num_heads": 2, "num_layers": 1},
        lambda model: {
            **given(timestep=TIME[:1], encoder_hidden_states_image=(1, 3, 1280))(model),
            "hidden_states": [torch.randn(4, 2, 4, 4)],
            "condition_latents": [torch.randn(4, 2, 4, 4)],
            "encoder_hidden_states": [torch.randn(5, TEXT)],
            "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
            **_reference_pass(),
        },
    ),
    Denoiser("chronoedit", "ChronoEditTransformer3DModel", WAN, given(**VIDEO, **PROMPT)),
    Denoiser("skyreels_v2", "SkyReelsV2Transformer3DModel", WAN, given(**VIDEO, **PROMPT)),
    Denoiser("anyflow", "AnyFlowTransformer3DModel", ANYFLOW, given(**ANYFLOW_INPUTS)),
    Denoiser(
        "anyflow_far",
        "AnyFlowFARTransformer3DModel",
        ANYFLOW | {"full_chunk_limit": 2},
        given(**ANYFLOW_INPUTS, chunk_partition=[1, 1]),
    ),
    Denoiser(
        "helios",
        "HeliosTransformer3DModel",
        without(WAN, "rope_max_seq_len") | {"rope_dim": (4, 4, 4)},
        given(
            **VIDEO,
            **PROMPT,
            indices_hidden_states=ones(2, 2),
            indices_latents_history_short=ones(2, 1),
            indices_latents_history_mid=ones(2, 1),
            indices_latents_history_long=ones(2, 4),
            latents_history_short=(2, 4, 1, 4, 4),
            latents_history_mid=(2, 4, 1, 4, 4),
            latents_history_long=(2, 4, 4, 4, 4),
        ),
    ),
    Denoiser("hunyuan_video", "HunyuanVideoTransformer3DModel", HUNYUAN, given(**HUNYUAN_INPUTS, guidance=STEP)),
    Denoiser(
        "hunyuan_video_i2v",
        "HunyuanVideoTransformer3DModel",
        HUNYUAN | {"guidance_embeds": False, "image_condition_type": "latent_concat"},
        given(**HUNYUAN_INPUTS),
    ),
    Denoiser(
        "hunyuan_video_token_replace",
        "HunyuanVideoTransformer3DModel",
        HUNYUAN | {"image_condition_type": "token_replace"},
        given(**HUNYUAN_INPUTS, guidance=STEP),
    ),
    Denoiser(
        "hunyuan_video15",
        "HunyuanVideo15Transformer3DModel",
        without(HUNYUAN, "num_single_layers", "pooled_projection_dim", "patch_size")
        | {"text_embed_2_dim": 10, "image_embed_dim": 6, "target_size": 4},
        given(
            **VIDEO,
            **PROMPT,
            **MASK,
            encoder_hidden_states_2=(2, 4, 10),
            encoder_attention_mask_2=ones(2, 4),
            image_embeds=(2, 3, 6),
        ),
    ),
    Denoiser(
        "hunyuan_video_framepack",
        "HunyuanVideoFramepackTransformer3DModel",
        HUNYUAN | {"has_image_proj": True, "image_proj_dim": 6, "has_clean_x_embedder": True},
        given(
            **HUNYUAN_INPUTS,
            guidance=STEP,
            image_embeds=(2, 3, 6),
            indices_latents=ones(2),
            latents_clean=(2, 4, 1, 4, 4),
            indices_latents_clean=ones(1),
            latents_history_2x=(2, 4, 2, 4, 4),
            indices_latents_history_2x=ones(2),
            latents_history_4x=(2, 4, 4, 4, 4),
            indices_latents_history_4x=ones(4),
        ),
    ),
    Denoiser(
        "motif_video",
        "MotifVideoTransformer3DModel",
        without(HUNYUAN, "num_refiner_layers", "pooled_projection_dim")
        | {"enable_text_cross_attention_dual": True, "enable_text_cross_attention_single": True},
        given(**VIDEO, **PROMPT, **MASK),
    ),
]
