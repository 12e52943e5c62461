"""What programs may ask for: /generate, /adapters, /bases and /recipe, of the same functions as the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import gradio as gr
from PIL import Image

from ui.common import GPU, App
from ui.grid import read_either
from ui.request import Request


def build(app: App, fields: Mapping[str, Any], gallery: gr.Gallery) -> None:
    """Add the endpoints to the open page."""

    def generate(
        prompt: str, negative_prompt: str, seed: int, steps: int, guidance_scale: float, num_images: int,
        adapters: dict[str, Any] | None = None, sampler: str = "", width: int = 0, height: int = 0, base: str = "",
        strength: float = 0.6, image: Image.Image | None = None,
    ) -> list[Image.Image]:  # fmt: skip
        """Make pictures. `adapters`: name -> weight, or a mapping with `weight`, `start`, `end`, `bands`, `scopes`,
        `domains` and `mask` (a PNG as a data URI). Each picture carries its recipe in its PNG."""
        given = locals()
        with app.toasts():
            request = Request.from_page({name: value for name, value in given.items() if name in Request.kinds()})
            return [picture for _, picture in app.studio.make(request, adapters or {}, image=image)]

    order = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "num_images")
    more = ("sampler", "width", "height", "base", "strength")
    weights = gr.JSON(label="Adapters: name -> weight, or a mapping of how it acts", visible=False)
    source = gr.Image(label="Picture to draw from", type="pil", visible=False)
    inputs = [*(fields[name] for name in order), weights, *(fields[name] for name in more), source]
    gr.Button(visible=False).click(generate, inputs, gallery, api_name="generate", **GPU)

    def adapters(base: str = "") -> list[dict]:  # type: ignore[type-arg]  # gradio reads the hint
        """The files of the library, as they are for a base: name, family, trigger, and why a file is refused."""
        with app.toasts():
            return [entry.describe() for entry in app.library.scan(app.studio.base(base))]

    def bases() -> list[dict]:  # type: ignore[type-arg]
        """The bases, and what each takes: size in pixels, samplers, guidance, whether it draws from a picture."""
        with app.toasts():
            return [{"name": name, **asdict(app.studio.traits(name))} for name in list(app.studio.bases)]

    def recipe(picture: str) -> dict[str, Any]:
        """The recipe that a PNG carries; of a sheet of Compare its `x`, `y`, `request` and `adapters`, as for /grid."""
        with app.toasts():
            return read_either(picture).as_dict()

    picture = gr.File(label="A PNG that was made here", type="filepath", visible=False)
    gr.Button(visible=False).click(recipe, picture, gr.JSON(visible=False), api_name="recipe", queue=False)
    gr.api(adapters)
    gr.api(bases, **GPU)
