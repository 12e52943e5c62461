"""Image transformers that patch their latents themselves."""

from __future__ import annotations

import torch
from torch import nn

from .rows import HEADS, PROMPT, STEP, TEXT, TIME, Denoiser, given, listed, ones

PLAIN = {**HEADS, "in_channels": 4, "patch_size": 2, "num_layers": 2}
LATENT = {"hidden_states": (2, 4, 8, 8), "timestep": STEP}
POOLED = {"pooled_projections": (2, 10)}
SD3 = {**PLAIN, "sample_size": 8, "out_channels": 4, "caption_projection_dim": 16}
SD3 |= {"joint_attention_dim": TEXT, "pooled_projection_dim": 10, "pos_embed_max_size": 8}
SANA = {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_cross_attention_heads": 2}
SANA |= {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": TEXT}
SANA |= {"sample_size": 8, "patch_size": 1}
HUNYUAN_DIT = {**HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 16}
HUNYUAN_DIT |= {"cross_attention_dim": TEXT, "cross_attention_dim_t5": 16, "pooled_projection_dim": 6}
HUNYUAN_DIT |= {"text_len": 5, "text_len_t5": 4}
HUNYUAN_PROMPT = {**LATENT, **PROMPT, "text_embedding_mask": ones(2, 5), "encoder_hidden_states_t5": (2, 4, 16)}
HUNYUAN_PROMPT |= {"text_embedding_mask_t5": ones(2, 4), "image_meta_size": (2, 6)}
HUNYUAN_PROMPT |= {"style": torch.zeros(2, dtype=torch.long), "image_rotary_emb": listed((16, 8), (16, 8))}
Z_IMAGE = {"dim": 16, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
SIZES = {name: torch.tensor([[8.0, 8.0]] * 2) for name in ("original_size", "target_size", "crop_coords")}


def share_z_image(controlnet: nn.Module) -> None:
    """The Z-Image ControlNet reads embeddings and refiners of the transformer that it steers."""
    from diffusers import ZImageTransformer2DModel

    type(controlnet).from_transformer(controlnet, ZImageTransformer2DModel(**Z_IMAGE_CONFIG))
    controlnet.gradient_checkpointing = False  # its forward asks for what its constructor forgets


Z_IMAGE_CONFIG = {**Z_IMAGE, "in_channels": 4, "n_layers": 1, "cap_feat_dim": TEXT, "axes_dims": [4, 2, 2]}
Z_IMAGE_CONFIG |= {"axes_lens": [64, 8, 8]}
Z_IMAGE_INPUTS = {"x": listed((4, 1, 8, 8)), "t": TIME[:1], "cap_feats": listed((5, TEXT))}

IMAGES = [
    Denoiser("sd3", "SD3Transformer2DModel", SD3, given(**LATENT, **PROMPT, **POOLED)),
    Denoiser(
        "sd35",
        "SD3Transformer2DModel",
        SD3 | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        given(**LATENT, **PROMPT, **POOLED),
    ),
    Denoiser(
        "sd3_controlnet", "SD3ControlNetModel", SD3, given(**LATENT, **PROMPT, **POOLED, controlnet_cond=(2, 4, 8, 8))
    ),
    Denoiser(
        "bria_fibo2",
        "BriaFibo2Transformer2DModel",
        {"in_channels": 4, "dim": 24, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2}
        | {"cap_feat_dim": TEXT, "injection_layer_ids": (1,), "perceiver_num_layers": 1}
        | {"min_num_gist_tokens": 2, "max_num_gist_tokens": 4, "gist_step": 1, "gist_min_text_len": 2}
        | {"gist_max_text_len": 8, "axes_dims": (4, 4, 4), "axes_lens": (32, 8, 8)},
        given(**LATENT | {"timestep": TIME}, encoder_hidden_states=(2, 2, 5, TEXT)),
    ),
    Denoiser(
        "auraflow",
        "AuraFlowTransformer2DModel",
        {**HEADS, "sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
        | {"joint_attention_dim": TEXT, "caption_projection_dim": 16, "pos_embed_max_size": 16},
        given(**LATENT, **PROMPT),
    ),
    Denoiser(
        "pixart",
        "PixArtTransformer2DModel",
        PLAIN
        | {"sample_size": 8, "out_channels": 8, "cross_attention_dim": 16, "caption_channels": TEXT}
        | {"use_additional_conditions": False},
        given(**LATENT, **PROMPT, added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    ),
    Denoiser(
        "dit",
        "DiTTransformer2DModel",
        PLAIN | {"sample_size": 8, "out_channels": 8, "num_embeds_ada_norm": 8},
        given(**LATENT, class_labels=torch.tensor([1, 2])),
    ),
    Denoiser("sana", "SanaTransformer2DModel", SANA, given(**LATENT, **PROMPT)),
    Denoiser("sana_controlnet", "SanaControlNetModel", SANA, given(**LATENT, **PROMPT, controlnet_cond=(2, 4, 8, 8))),
    Denoiser("hunyuan_dit", "HunyuanDiT2DModel", HUNYUAN_DIT | {"num_layers": 2}, given(**HUNYUAN_PROMPT)),
    Denoiser(
        "hunyuan_dit_controlnet",
        "HunyuanDiT2DControlNetModel",
        HUNYUAN_DIT | {"transformer_num_layers": 4},
        given(**HUNYUAN_PROMPT, controlnet_cond=(2, 4, 8, 8)),
    ),
    Denoiser(
        "hunyuan_image",
        "HunyuanImageTransformer2DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1}
        | {"num_refiner_layers": 1, "text_embed_dim": TEXT, "text_embed_2_dim": 10, "rope_axes_dim": (4, 4)},
        given(
            **LATENT,
            **PROMPT,
            encoder_attention_mask=ones(2, 5),
            encoder_hidden_states_2=(2, 4, 10),
            encoder_attention_mask_2=ones(2, 4),
        ),
    ),
    Denoiser(
        "cogview3_plus",
        "CogView3PlusTransformer2DModel",
        PLAIN
        | {"out_channels": 4, "text_embed_dim": TEXT, "time_embed_dim": 8, "condition_dim": 2}
        | {"pos_embed_max_size": 8, "sample_size": 8},
        given(**LATENT, **PROMPT, **SIZES),
    ),
    Denoiser(
        "cogview4",
        "CogView4Transformer2DModel",
        PLAIN
        | {"out_channels": 4, "text_embed_dim": TEXT, "time_embed_dim": 8, "condition_dim": 2}
        | {"rope_axes_dim": (8, 8), "sample_size": 8},
        given(**LATENT, **PROMPT, **SIZES),
    ),
    Denoiser(
        "glm_image",
        "GlmImageTransformer2DModel",
        PLAIN
        | {"out_channels": 4, "text_embed_dim": TEXT, "time_embed_dim": 8, "condition_dim": 2}
        | {"prior_vq_quantizer_codebook_size": 8},
        given(
            **LATENT,
            **PROMPT,
            prior_token_id=lambda: torch.randint(0, 8, (2, 16)),
            prior_token_drop=torch.tensor([False, True]),
            target_size=SIZES["target_size"],
            crop_coords=SIZES["crop_coords"],
        ),
    ),
    Denoiser(
        "ernie_image",
        "ErnieImageTransformer2DModel",
        {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 24}
        | {"in_channels": 4, "out_channels": 4, "text_in_dim": TEXT, "rope_axes_dim": (4, 2, 2)},
        given(**LATENT, text_bth=(2, 5, TEXT), text_lens=torch.tensor([5, 5])),
    ),
    Denoiser(
        "lumina_next",
        "LuminaNextDiT2DModel",
        {"sample_size": 8, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1}
        | {"multiple_of": 8, "learn_sigma": False, "cross_attention_dim": TEXT},
        given(
            **LATENT | {"timestep": TIME},
            **PROMPT,
            encoder_mask=ones(2, 5),
            image_rotary_emb=lambda: torch.polar(torch.ones(16, 16, 4), torch.randn(16, 16, 4)),
            cross_attention_kwargs={},
        ),
    ),
    Denoiser(
        "lumina2",
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "hidden_size": 16, "num_layers": 1, "num_refiner_layers": 1}
        | {"num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": (4, 2, 2)}
        | {"axes_lens": (32, 16, 16), "cap_feat_dim": TEXT},
        given(**LATENT | {"timestep": TIME}, **PROMPT, encoder_attention_mask=lambda: torch.ones(2, 5).bool()),
    ),
    Denoiser("z_image", "ZImageTransformer2DModel", Z_IMAGE_CONFIG, given(**Z_IMAGE_INPUTS)),
    Denoiser(
        "z_image_controlnet",
        "ZImageControlNetModel",
        {**Z_IMAGE, "control_layers_places": [0], "control_refiner_layers_places": [0], "control_in_dim": 4}
        | {"add_control_noise_refiner": "control_noise_refiner"},
        given(**Z_IMAGE_INPUTS, control_context=listed((4, 1, 8, 8))),
        prepare=share_z_image,
    ),
    Denoiser(
        "hidream",
        "HiDreamImageTransformer2DModel",
        {**HEADS, "patch_size": 2, "in_channels": 4, "num_layers": 1, "num_single_layers": 1}
        | {"caption_channels": [10, TEXT], "text_emb_dim": 6, "num_routed_experts": 2}
        | {"num_activated_experts": 2, "axes_dims_rope": (4, 2, 2), "max_resolution": (8, 8)}
        | {"llama_layers": (0, 1), "force_inference_output": True},
        given(
            hidden_states=(2, 4, 8, 8),
            timesteps=STEP,
            encoder_hidden_states_t5=(2, 5, 10),
            encoder_hidden_states_llama3=(2, 2, 5, TEXT),
            pooled_embeds=(2, 6),
        ),
    ),
    Denoiser(
        "omnigen",
        "OmniGenTransformer2DModel",
        {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
        | {"num_layers": 1, "pad_token_id": 0, "vocab_size": 32, "time_step_dim": 8, "pos_embed_max_size": 8}
        | {"rope_scaling": {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4}},
        given(
            hidden_states=(2, 4, 8, 8),
            timestep=TIME,
            input_ids=lambda: torch.randint(0, 32, (2, 20)),
            input_img_latents=listed((1, 4, 8, 8)),
            input_image_sizes={0: [[0, 16]]},
            attention_mask=ones(2, 37, 37),
            position_ids=torch.arange(37).expand(2, -1),
        ),
    ),
    Denoiser(
        "prx",
        "PRXTransformer2DModel",
        {"in_channels": 4, "context_in_dim": TEXT, "hidden_size": 16, "num_heads": 2, "depth": 2}
        | {"axes_dim": [4, 4]},
        given(**LATENT | {"timestep": TIME}, **PROMPT),
    ),
]
