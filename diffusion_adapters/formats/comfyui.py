"""Files with ComfyUI's names: `diffusion_model.` and the original model's path of the layer, with dots."""

from __future__ import annotations

from .dialect import DENOISER, DIALECTS, Dialect

PREFIXES = {
    "model.diffusion_model.": DENOISER,
    "diffusion_model.": DENOISER,
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
    "text_encoders.clip_l.": "text_encoder",
    "text_encoders.clip_g.": "text_encoder_2",
    "text_encoders.t5xxl.": "text_encoder_3",
    "clip_l.transformer.": "text_encoder",
    "clip_g.transformer.": "text_encoder_2",
}


@DIALECTS.register("comfyui")
class ComfyUI(Dialect):
    """ComfyUI, and trainers that write for it"""

    @staticmethod
    def place(module: str) -> tuple[str, str] | None:
        found = next((prefix for prefix in PREFIXES if module.startswith(prefix)), None)
        if found is None or ".processor." in module:
            return None
        return PREFIXES[found], module.removeprefix(found)
