"""The other video transformers."""

from __future__ import annotations

import torch

from .rows import HEADS, PROMPT, STEP, TEXT, TIME, Denoiser, given, ones

VIDEO = {"hidden_states": (2, 4, 2, 4, 4), "timestep": STEP}
MASK = {"encoder_attention_mask": ones(2, 5)}
LTX = {**HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "num_layers": 1}
LTX |= {"caption_channels": TEXT}
LTX_INPUTS = {"hidden_states": (2, 32, 4), "timestep": STEP, **PROMPT, **MASK}
SHAPE = {"num_frames": 2, "height": 4, "width": 4}
LTX2 = (
    LTX
    | {"audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2}
    | {"audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "rope_double_precision": False}
)
COGVIDEO = {**HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 6, "text_embed_dim": TEXT}
COGVIDEO |= {"num_layers": 1, "sample_width": 4, "sample_height": 4, "sample_frames": 5}
COGVIDEO |= {"max_text_seq_length": 5}
COGVIDEO_INPUTS = {"hidden_states": (2, 2, 4, 4, 4), "timestep": STEP, **PROMPT}
COSMOS = {"in_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "text_embed_dim": TEXT}
COSMOS |= {"adaln_lora_dim": 4, "max_size": (4, 8, 8), "mlp_ratio": 2.0}
JOY = {"in_channels": 4, "hidden_size": 16, "num_attention_heads": 2, "text_dim": TEXT, "num_layers": 1}
JOY |= {"rope_dim_list": [4, 2, 2]}
KANDINSKY = {"in_visual_dim": 4, "in_text_dim": TEXT, "in_text_dim2": 10, "time_dim": 8, "out_visual_dim": 4}
KANDINSKY |= {"model_dim": 16, "ff_dim": 24, "num_text_blocks": 1, "num_visual_blocks": 1}
KANDINSKY |= {"axes_dims": (4, 2, 2)}
KANDINSKY_INPUTS = {"hidden_states": (1, 2, 4, 4, 4), "encoder_hidden_states": (1, 5, TEXT), "timestep": STEP[:1]}
KANDINSKY_INPUTS |= {"pooled_projections": (1, 10)}


VIDEOS = [
    Denoiser("ltx", "LTXVideoTransformer3DModel", LTX, given(**LTX_INPUTS, **SHAPE)),
    Denoiser(
        "ltx2",
        "LTX2VideoTransformer3DModel",
        LTX2,
        given(
            **LTX_INPUTS,
            **SHAPE,
            audio_hidden_states=(2, 6, 4),
            audio_encoder_hidden_states=(2, 5, TEXT),
            audio_num_frames=6,
            audio_encoder_attention_mask=ones(2, 5),
        ),
    ),
    Denoiser(
        "sana_wm_refiner",
        "SanaWMLTX2RefinerTransformer3DModel",
        LTX2,
        lambda model: {
            **given(**LTX_INPUTS)(model),
            "video_rotary_emb": model.build_rotary_emb_for_absolute_positions(
                2, [0, 1], 4, 4, torch.device("cpu"), 24.0
            ),
        },
    ),
    Denoiser("cogvideox", "CogVideoXTransformer3DModel", COGVIDEO, given(**COGVIDEO_INPUTS)),
    Denoiser(
        "cogvideox15",
        "CogVideoXTransformer3DModel",
        COGVIDEO | {"patch_size_t": 2, "use_rotary_positional_embeddings": True, "patch_bias": False},
        given(**COGVIDEO_INPUTS, image_rotary_emb=lambda: (torch.randn(4, 8), torch.randn(4, 8))),
    ),
    Denoiser(
        "consisid",
        "ConsisIDTransformer3DModel",
        COGVIDEO
        | {"is_train_face": True, "cross_attn_interval": 1, "cross_attn_dim_head": 4}
        | {"cross_attn_num_heads": 2}
        | {"LFE_id_dim": 6, "LFE_vit_dim": 6, "LFE_depth": 5, "LFE_dim_head": 4, "LFE_num_heads": 2}
        | {"LFE_num_id_token": 1, "LFE_num_querie": 2, "LFE_output_dim": 10, "LFE_ff_mult": 1}
        | {"LFE_num_scale": 1},
        given(**COGVIDEO_INPUTS, id_cond=(2, 6), id_vit_hidden=lambda: [torch.randn(2, 3, 6)]),
    ),
    Denoiser(
        "cosmos",
        "CosmosTransformer3DModel",
        COSMOS | {"out_channels": 4, "num_layers": 1, "concat_padding_mask": False},
        given(**VIDEO, **PROMPT),
    ),
    Denoiser(
        "cosmos_controlnet",
        "CosmosControlNetModel",
        COSMOS
        | {"n_controlnet_blocks": 1, "in_channels": 6, "latent_channels": 6, "model_channels": 24}
        | {"img_context_dim_in": 10, "img_context_dim_out": 24},
        given(
            timestep=TIME[:1],
            controls_latents=(1, 4, 2, 4, 4),
            latents=(1, 4, 2, 4, 4),
            encoder_hidden_states=lambda: (torch.randn(1, 5, TEXT), torch.randn(1, 3, 10)),
            condition_mask=ones(1, 1, 2, 4, 4),
            padding_mask=ones(1, 1, 4, 4),
        ),
        needs="torchvision",
    ),
    Denoiser(
        "cosmos3_omni",
        "Cosmos3OmniTransformer",
        {"head_dim": 12, "hidden_size": 24, "intermediate_size": 32, "latent_channel": 4}
        | {"latent_patch_size": 1}
        | {"num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "patch_latent_dim": 4}
        | {"rope_axes_dim": [2, 2, 2], "vocab_size": 32, "rope_theta": 10000.0},
        given(
            input_ids=torch.arange(5),
            text_indexes=torch.arange(5),
            position_ids=torch.arange(9).expand(3, -1),
            und_len=5,
            sequence_length=9,
            vision_tokens=lambda: [torch.randn(1, 4, 1, 2, 2)],
            vision_token_shapes=[(1, 2, 2)],
            vision_sequence_indexes=torch.arange(5, 9),
            vision_mse_loss_indexes=torch.arange(5, 9),
            vision_timesteps=torch.full((4,), 300.0),
            vision_noisy_frame_indexes=[torch.tensor([0])],
        ),
    ),
    Denoiser(
        "mochi",
        "MochiTransformer3DModel",
        {**HEADS, "num_layers": 2, "pooled_projection_dim": 10, "in_channels": 4, "text_embed_dim": 24}
        | {"time_embed_dim": 4, "max_sequence_length": 5},
        given(**VIDEO, encoder_hidden_states=(2, 5, 24), encoder_attention_mask=lambda: torch.ones(2, 5).bool()),
    ),
    Denoiser(
        "latte",
        "LatteTransformer3DModel",
        {**HEADS, "in_channels": 4, "num_layers": 1, "cross_attention_dim": 16, "caption_channels": TEXT}
        | {"sample_size": 4, "patch_size": 2, "num_embeds_ada_norm": 8, "norm_type": "ada_norm_single"}
        | {"norm_elementwise_affine": False, "norm_eps": 1e-06, "video_length": 2},
        given(**VIDEO, **PROMPT),
    ),
    Denoiser(
        "allegro",
        "AllegroTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "cross_attention_dim": 24}
        | {"sample_width": 4, "sample_height": 4, "sample_frames": 2, "caption_channels": TEXT},
        given(**VIDEO, **PROMPT),
    ),
    Denoiser(
        "easyanimate",
        "EasyAnimateTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "patch_size": 2}
        | {"sample_width": 4}
        | {"out_channels": 4, "sample_height": 4, "num_layers": 2, "mmdit_layers": 1, "time_embed_dim": 8}
        | {"text_embed_dim": TEXT},
        given(**VIDEO, **PROMPT),
    ),
    Denoiser(
        "sana_video",
        "SanaVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12}
        | {"num_layers": 1}
        | {"num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24}
        | {"caption_channels": TEXT, "sample_size": 4, "rope_max_seq_len": 16},
        given(**VIDEO, **PROMPT),
    ),
    Denoiser(
        "sana_wm",
        "SanaWMTransformer3DModel",
        {"in_channels": 4, "num_layers": 2, "hidden_size": 24, "num_attention_heads": 2}
        | {"linear_head_dim": 12}
        | {"caption_channels": TEXT, "softmax_every_n": 2, "chunk_plucker_channels": 6},
        given(
            hidden_states=(2, 4, 2, 4, 4),
            timestep=STEP[:, None, None].expand(2, 1, 2),
            encoder_hidden_states=(2, 1, 5, TEXT),
            mask=ones(2, 1, 1, 5),
        ),
    ),
    Denoiser("joyimage_edit", "JoyImageEditTransformer3DModel", JOY, given(**VIDEO, **PROMPT)),
    Denoiser(
        "joyimage_edit_plus",
        "JoyImageEditPlusTransformer3DModel",
        JOY,
        given(hidden_states=(2, 2, 4, 1, 2, 2), timestep=STEP, **PROMPT, shape_list=[[(1, 1, 1)] * 2] * 2),
    ),
    Denoiser(
        "kandinsky5",
        "Kandinsky5Transformer3DModel",
        KANDINSKY,
        given(
            **KANDINSKY_INPUTS,
            visual_rope_pos=[torch.arange(size) for size in (2, 2, 2)],
            text_rope_pos=torch.arange(5),
        ),
    ),
    Denoiser(
        "kandinsky6",
        "Kandinsky6Transformer3DModel",
        KANDINSKY | {"in_audio_dim": 6, "out_audio_dim": 6, "visual_cond": False},
        given(**KANDINSKY_INPUTS, audio_hidden_states=(1, 3, 6)),
    ),
    Denoiser(
        "kandinsky6_sr",
        "Kandinsky6SRTransformer3DModel",
        {"in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 8, "model_dim": 16, "ff_dim": 24}
        | {"num_visual_blocks": 1}
        | {"axes_dims": (4, 2, 2)},
        given(hidden_states=(1, 1, 8, 8, 9), timestep=STEP[:1]),
    ),
]
