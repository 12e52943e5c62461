"""Files of kohya's sd-scripts and of what follows them: `lora_unet_` and the path of the layer with underscores."""

from __future__ import annotations

from .dialect import DENOISER, DIALECTS, Dialect

PREFIXES = {
    "lora_unet_": DENOISER,
    "lora_transformer_": DENOISER,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}


@DIALECTS.register("kohya")
class Kohya(Dialect):
    """kohya's sd-scripts, and programs that follow them"""

    @staticmethod
    def place(module: str) -> tuple[str, str] | None:
        found = next((prefix for prefix in PREFIXES if module.startswith(prefix)), None)
        return None if found is None or "." in module else (PREFIXES[found], module.removeprefix(found))
