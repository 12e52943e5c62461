"""Files whose keys are the path of the layer and nothing in front: one model, saved without a word on which."""

from __future__ import annotations

from . import comfyui, peft
from .dialect import DENOISER, DIALECTS, Dialect
from .diffusers import COMPONENTS, modern

OTHERS = (*comfyui.PREFIXES, peft.PREFIX, *(f"{component}." for component in COMPONENTS))


@DIALECTS.register("bare")
class Bare(Dialect):
    """paths of layers alone, as a model of diffusers or an original one names them"""

    @staticmethod
    def place(module: str) -> tuple[str, str] | None:
        alone = "." in module and not module.startswith(OTHERS)
        return (DENOISER, modern(module)) if alone and "_lora" not in modern(module) else None
