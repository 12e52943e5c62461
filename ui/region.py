"""A region painted on a picture: the editor, and the mask that is in what it gives."""

from __future__ import annotations

import functools
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
    return gr.ImageEditor(
        painted(size, mask, None), label=f"Region of {name}: paint where it acts", type="pil", format="png",
        sources=(), transforms=(), layers=False, canvas_size=canvas, fixed_canvas=True, interactive=True, buttons=[],
        **tools(), height=canvas[1] + 60,
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
        layers.append(layer_of(decode_image(mask, "mask"), canvas))
    return {"background": ground, "layers": layers, "composite": None}


def tools() -> dict[str, Any]:
    """The brush and the eraser of an editor."""
    colour = f"rgba{(*PAINT, OPACITY / 255)}"
    brush = gr.Brush(default_size=48, colors=[colour], default_color=colour, color_mode="fixed")
    return {"brush": brush, "eraser": gr.Eraser(default_size=48)}


def layer_of(mask: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """What is painted where a mask is white."""
    layer = Image.new("RGBA", canvas, (*PAINT, 0))
    layer.putalpha(mask.convert("L").resize(canvas).point(lambda v: v * OPACITY // 255))
    return layer


def strokes(value: dict[str, Any] | None) -> Image.Image | None:
    """What is painted in an editor's value, in grey; None if nothing is."""
    layers = [layer.getchannel("A") for layer in (value or {}).get("layers") or [] if layer.mode == "RGBA"]
    painted = functools.reduce(ImageChops.lighter, layers) if layers else None
    return painted.point(lambda v: min(255, v * 255 // OPACITY)) if painted and painted.getbbox() else None


def mask_of(value: dict[str, Any] | None) -> str | None:
    """What is painted in an editor's value, as a mask in a data URI; None if nothing is."""
    mask = strokes(value)
    return None if mask is None else encode_image(mask.resize(fitted(mask.size, MASK)))


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A size of the same shape whose longer side is `longest`."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
