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
PAINT, OPACITY = (79, 70, 229), 160


def editor(name: str, size: tuple[int, int], mask: str | None) -> gr.ImageEditor:
    """The editor of the region of adapter `name` in pictures of `size`, to be seen if there is a mask."""
    canvas = fitted(size, CANVAS)
    colour = f"rgba{(*PAINT, OPACITY / 255)}"
    return gr.ImageEditor(
        painted(size, mask, None), label=f"Region of {name}: paint where it acts", type="pil", format="png",
        sources=(), transforms=(), layers=False, canvas_size=canvas, fixed_canvas=True, interactive=True, buttons=[],
        brush=gr.Brush(default_size=48, colors=[colour], default_color=colour, color_mode="fixed"),
        eraser=gr.Eraser(default_size=48), height=canvas[1] + 60,
        visible=mask is not None, elem_classes="region",
    )  # fmt: skip


def painted(size: tuple[int, int], mask: str | None, picture: str | None) -> dict[str, Any]:
    """The value of an editor: what is painted on, and what is painted already."""
    canvas = fitted(size, CANVAS)
    ground = Image.new("RGB", canvas, (228, 228, 231))
    if picture:
        with Image.open(picture) as image:
            ground = image.convert("RGB").resize(canvas, Image.Resampling.NEAREST)
    layers = []
    if mask:
        layers.append(Image.new("RGBA", canvas, (*PAINT, 0)))
        layers[0].putalpha(decode_image(mask, "mask").convert("L").resize(canvas).point(lambda v: v * OPACITY // 255))
    return {"background": ground, "layers": layers, "composite": None}


def mask_of(value: dict[str, Any] | None) -> str | None:
    """What is painted in an editor's value, as a mask in a data URI; None if nothing is."""
    layers = [layer.getchannel("A") for layer in (value or {}).get("layers") or [] if layer.mode == "RGBA"]
    if not layers:
        return None
    mask = layers[0]
    for layer in layers[1:]:
        mask = ImageChops.lighter(mask, layer)
    mask = mask.resize(fitted(mask.size, MASK)).point(lambda v: min(255, v * 255 // OPACITY))
    return encode_image(mask) if mask.getbbox() else None


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A size of the same shape whose longer side is `longest`."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
