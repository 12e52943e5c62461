"""Files of XLabs' trainer for Flux: parts of the processors of the original model's blocks."""

from __future__ import annotations

import re

from .dialect import DENOISER, DIALECTS, Dialect

PART = re.compile(r"(?:diffusion_model\.)?(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora(1|2|)")
STREAMS = {"1": "img_attn", "2": "txt_attn"}


@DIALECTS.register("xlabs")
class XLabs(Dialect):
    """XLabs' trainer for Flux"""

    @staticmethod
    def place(module: str) -> tuple[str, str] | None:
        found = PART.fullmatch(module)
        if found is None:
            return None
        kind, block, part, stream = found.groups()
        if (kind == "double") != bool(stream):
            return None
        end = f"{STREAMS[stream]}.{part}" if stream else part
        return DENOISER, f"{kind}_blocks.{block}.{end}"
