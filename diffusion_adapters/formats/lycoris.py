"""Files of LyCORIS outside kohya's scripts: `lycoris_` and the path of the layer with underscores."""

from __future__ import annotations

from .dialect import DENOISER, DIALECTS, Dialect

PREFIX = "lycoris_"


@DIALECTS.register("lycoris")
class Lycoris(Dialect):
    """LyCORIS, and programs that train with it"""

    @staticmethod
    def place(module: str) -> tuple[str, str] | None:
        return (DENOISER, module.removeprefix(PREFIX)) if module.startswith(PREFIX) and "." not in module else None
