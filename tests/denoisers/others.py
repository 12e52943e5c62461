"""Transformers that hear, priors, and blocks that diffusers also ships as models of their own."""

from __future__ import annotations

import torch

from .rows import HEADS, PROMPT, STEP, TEXT, TIME, Denoiser, given, ones

SOUND = {"hidden_states": (2, 8, 16), "timestep": TIME}


def _packed_rows() -> dict[str, torch.Tensor]:
    """MiniMax-H3 takes one sequence of rows, tagged by kind: 4 of text, 3 of sound, 8 of video."""
    kinds = torch.tensor([1] * 4 + [2] * 3 + [0] * 8)
    place = torch.arange(15)
    return {
        "timestep": TIME,
        "timestep_indices": (kinds == 2).long(),
        "token_tags": kinds,
        "position_ids": torch.stack([place, place % 4, place % 2], 1).float(),
        "text_indices": place[kinds == 1],
        "audio_indices": place[kinds == 2],
        "video_indices": place[kinds == 0],
    }


OTHERS = [
    Denoiser(
        "minimax_h3",
        "MiniMaxH3Transformer3DModel",
        {**HEADS, "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1, "ffn_dim": 32}
        | {"in_channels": 4}
        | {"audio_in_channels": 6, "text_dim": TEXT, "freq_dim": 8, "time_embed_hidden_dim": 24}
        | {"time_embed_dim": 16}
        | {"rope_freq_dim": 1},
        lambda model: {
            **given(hidden_states=(2, 8, 16), audio_hidden_states=(2, 3, 6), encoder_hidden_states=(2, 4, TEXT))(model),
            **_packed_rows(),
        },
    ),
    Denoiser(
        "stable_audio",
        "StableAudioDiTModel",
        {**HEADS, "sample_size": 16, "in_channels": 8, "out_channels": 8, "num_layers": 1}
        | {"time_proj_dim": 8}
        | {"num_key_value_attention_heads": 1, "cross_attention_dim": 16, "cross_attention_input_dim": TEXT}
        | {"global_states_input_dim": 10},
        given(
            **SOUND,
            **PROMPT,
            global_hidden_states=(2, 1, 10),
            rotary_embedding=lambda: (torch.randn(17, 4), torch.randn(17, 4)),
        ),
    ),
    Denoiser(
        "stable_audio3",
        "StableAudio3DiTModel",
        {"io_channels": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "cond_token_dim": TEXT}
        | {"global_cond_dim": 10}
        | {"local_add_cond_dim": 6, "timestep_features_dim": 8, "ff_mult": 2, "num_memory_tokens": 2},
        given(**SOUND, **PROMPT, global_hidden_states=(2, 10)),
    ),
    Denoiser(
        "ace_step",
        "AceStepTransformer1DModel",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"head_dim": 6}
        | {"num_key_value_heads": 1, "in_channels": 12, "audio_acoustic_hidden_dim": 4, "sliding_window": 4}
        | {"encoder_hidden_size": TEXT},
        given(hidden_states=(2, 8, 4), timestep=TIME, timestep_r=TIME, **PROMPT, context_latents=(2, 8, 8)),
    ),
    Denoiser(
        "longcat_audio",
        "LongCatAudioDiTTransformer",
        {"dit_dim": 32, "dit_depth": 1, "dit_heads": 2, "dit_text_dim": TEXT, "latent_dim": 16} | {"text_conv": False},
        given(**SOUND, **PROMPT, encoder_attention_mask=lambda: torch.ones(2, 5).bool()),
    ),
    Denoiser(
        "minimax_music3",
        "MiniMaxMusic3Transformer1DModel",
        {**HEADS, "in_channels": 8, "condition_dim": TEXT, "num_layers": 1, "ff_inner_dim": 24}
        | {"rotary_dim": 4}
        | {"fourier_embedding_dim": 8},
        given(**SOUND, encoder_hidden_states=(2, 16, TEXT)),
    ),
    Denoiser(
        "minimax_music3_depth",
        "MiniMaxMusic3RVQDepthDecoder",
        {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        | {"audio_vocab_size": 8}
        | {"num_codebooks": 3},
        given(inputs_embeds=(2, 5, 16)),
    ),
    Denoiser(
        "spectrogram_diffusion",
        "T5FilmDecoder",
        {"input_dims": 6, "targets_length": 8, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
        | {"d_ff": 24},
        given(
            encodings_and_masks=lambda: [(torch.randn(2, 5, 16), torch.ones(2, 5))],
            decoder_input_tokens=(2, 8, 6),
            decoder_noise_time=TIME,
        ),
    ),
    Denoiser(
        "prior",
        "PriorTransformer",
        {**HEADS, "num_layers": 1, "embedding_dim": TEXT, "num_embeddings": 5},
        given(hidden_states=(2, TEXT), timestep=STEP, proj_embedding=(2, TEXT), encoder_hidden_states=(2, 5, TEXT)),
    ),
    Denoiser(
        "temporal",
        "TransformerTemporalModel",
        {**HEADS, "in_channels": 8, "norm_num_groups": 4, "cross_attention_dim": TEXT}
        | {"double_self_attention": False},
        given(hidden_states=(4, 8, 4, 4), encoder_hidden_states=(32, 5, TEXT), num_frames=2),
    ),
    Denoiser(
        "transformer_2d",
        "Transformer2DModel",
        {**HEADS, "in_channels": 8, "norm_num_groups": 4, "cross_attention_dim": TEXT},
        given(hidden_states=(2, 8, 4, 4), **PROMPT),
    ),
    Denoiser(
        "vq_diffusion",
        "Transformer2DModel",
        {**HEADS, "sample_size": 4, "num_vector_embeds": 9, "cross_attention_dim": TEXT}
        | {"norm_type": "ada_norm"}
        | {"num_embeds_ada_norm": 10, "attention_bias": True},
        given(hidden_states=lambda: torch.randint(0, 9, (2, 16)), timestep=torch.tensor(3), **PROMPT),
    ),
    Denoiser(
        "transformer_2d_dreamlite",
        "DreamLiteTransformer2DModel",
        {**HEADS, "in_channels": 16, "norm_num_groups": 4, "cross_attention_dim": TEXT, "qk_norm": "rms_norm"},
        given(hidden_states=(2, 16, 4, 4), **PROMPT),
    ),
    Denoiser(
        "proteina",
        "RFD4ProteinaTransformer",
        {"nlayers": 2, "token_dim": 16, "nheads": 2, "dim_cond": 10, "pair_repr_dim": 6, "latent_dim": 4}
        | {"t_emb_dim": 8, "tri_mult_c": 4, "num_sequence_classes": 5}
        | {"feats_seq": ("xt_bb_ca", "xt_local_latents")}
        | {"feats_cond_seq": ("time_emb_bb_ca",), "feats_pair_repr": ("xt_bb_ca_pair_dists",)}
        | {"feats_pair_cond": ()},
        given(
            bb_ca=(2, 7, 3),
            local_latents=(2, 7, 4),
            bb_ca_time=TIME,
            local_latents_time=TIME,
            padding_mask=ones(2, 7),
            conditioning={"is_in_context_conditioning": torch.zeros(2, 7), "supports_local_latent": torch.ones(2, 7)},
        ),
    ),
]
