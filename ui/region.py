"""A region painted on a picture: the editor, and the mask that is in what it gives."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from ui.request import decode_image, encode_image

CANVAS = 384
"""Pixels of the longer side of what is painted on."""
MASK = 128
"""Pixels of the longer side of a mask: finer than the tokens of any denoiser here."""
PAINT = (79, 70, 229)


def editor(name: str, size: tuple[int, int], mask: str | None, picture: str | None) -> gr.ImageEditor:
    """The editor of the region of adapter `name`, over a picture of `size` if there is one."""
    canvas = fitted(size, CANVAS)
    return gr.ImageEditor(
        painted(canvas, mask, picture), label=f"Region of {name}: paint where it acts", type="pil", format="png",
        sources=(), transforms=(), layers=False, canvas_size=canvas, fixed_canvas=True, interactive=True, buttons=[],
        brush=gr.Brush(default_size=48, colors=[f"rgb{PAINT}"], default_color=f"rgb{PAINT}",
                       color_mode="fixed"),
        eraser=gr.Eraser(default_size=48), height=canvas[1] + 60,
    )  # fmt: skip


def painted(canvas: tuple[int, int], mask: str | None, picture: str | None) -> dict[str, Any]:
    """The value of an editor: what is painted on, and what is painted already."""
    ground = Image.new("RGB", canvas, (228, 228, 231))
    if picture:
        with Image.open(picture) as image:
            ground = image.convert("RGB").resize(canvas, Image.Resampling.NEAREST)
    layer = Image.new("RGBA", canvas, (0, 0, 0, 0))
    if mask:
        grey = decode_image(mask, "mask").convert("L").resize(canvas)
        layer.paste(Image.new("RGBA", canvas, (*PAINT, 255)), mask=grey)
    return {"background": ground, "layers": [layer], "composite": None}


def mask_of(value: dict[str, Any] | None) -> str | None:
    """What is painted in an editor's value, as a mask in a data URI; None if nothing is."""
    layers = [layer.getchannel("A") for layer in (value or {}).get("layers") or [] if layer.mode == "RGBA"]
    if not layers:
        return None
    mask = layers[0]
    for layer in layers[1:]:
        mask = ImageChops.lighter(mask, layer)
    return encode_image(mask.resize(fitted(mask.size, MASK))) if mask.getbbox() else None


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A size of the same shape whose longer side is `longest`."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
