"""What programs may ask for: /generate, /adapters, /bases and /recipe, of the same functions as the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import gradio as gr
from PIL import Image

from ui.common import GPU, App
from ui.controls import START
from ui.grid import read_either
from ui.programs import Programs
from ui.request import Request


def build(app: App) -> None:
    """Add the endpoints to the open page."""

    def generate(
        prompt: str = START, negative_prompt: str = "", seed: int = 0, steps: int = 20,
        guidance_scale: float | None = None, num_images: int = 1,
        adapters: Annotated[dict[str, Any] | None, "a mapping of names to weights"] = None,
        sampler: str = "", width: int = 0, height: int = 0, base: str = "", strength: float = 0.6,
        image: Image.Image | None = None, *, check: Callable[[], None],
    ) -> Iterator[list[Image.Image]]:  # fmt: skip
        """Make pictures. `adapters`: name -> weight, or a mapping with `weight`, `start`, `end`, `bands`, `scopes`,
        `domains` and `mask` (a PNG as a data URI). `base`: one of /bases, the first if empty; a size of 0, no guidance
        and an empty sampler are the base's own. Each picture carries its recipe in its PNG."""
        given = {name: value for name, value in locals().items() if name in Request.kinds()}
        yield []
        if guidance_scale is None:
            given["guidance_scale"] = app.studio.traits(base).guidance or 1.0
        made = app.studio.make(
            Request.from_page(given), adapters or {}, image=image, on_step=lambda done, total: check()
        )
        yield [picture for _, picture in made]

    def adapters(base: str = "") -> list[dict[str, Any]]:
        """The files of the library, as they are for a base: name, family, trigger, and why a file is refused."""
        return [entry.describe() for entry in app.library.scan(app.studio.base(base))]

    def bases() -> list[dict[str, Any]]:
        """The bases, and what each takes: size in pixels, samplers, guidance, whether it draws from a picture."""
        return [{"name": name, **asdict(app.studio.traits(name))} for name in list(app.studio.bases)]

    def recipe(picture: Annotated[str, "a PNG that was made here"]) -> dict[str, Any]:
        """The recipe that a PNG carries; of a sheet of Compare its `x`, `y`, `request` and `adapters`, as for /grid."""
        return read_either(picture).as_dict()

    programs = Programs(app)
    pictures = gr.Gallery(label="pictures", format="png", type="filepath", visible=False)
    source = gr.Image(label="picture to draw from", type="pil", visible=False)
    picture = gr.File(label="a PNG that was made here", type="filepath", visible=False)
    programs.add(generate, pictures, files={"image": source}, **GPU)
    programs.add(recipe, "recipe", files={"picture": picture}, queue=False)
    programs.add(adapters, "adapters")
    programs.add(bases, "bases", **GPU)
