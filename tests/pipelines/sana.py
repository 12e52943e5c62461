from __future__ import annotations

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

from . import PIPELINES
from .parts import gemma, gemma_tokenizer


@PIPELINES.register("sana")
def sana() -> SanaPipeline:
    tokenizer = gemma_tokenizer()
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma(tokenizer),
        vae=AutoencoderDC(
            latent_channels=4, encoder_block_out_channels=(8,) * 6, decoder_block_out_channels=(8,) * 6,
            encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6, encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6, scaling_factor=0.41,
        ).eval(),
        transformer=SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
            num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
            sample_size=16, patch_size=1, timestep_scale=0.5,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
        ),
    )  # fmt: skip
