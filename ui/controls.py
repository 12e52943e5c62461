"""The controls of a request: the prompt, the settings, the base, and the picture that is drawn from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from ui import raw
from ui.bases import Traits
from ui.common import QUIET, App, hint
from ui.request import LARGEST, Request

START = "a photo of a red ball"
"""The prompt to begin with where no adapter has a trigger."""


class Controls:
    """Components by field of `Request`. Each method lays its part out where it is called."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.fields: dict[str, Any] = {}

    def ask(self) -> None:
        """The prompt."""
        control = {**Request.control("prompt"), "value": START}
        self.fields["prompt"] = gr.Textbox(label="Prompt", lines=2, max_lines=6, autofocus=True, **control)

    def settings(self) -> None:
        """Seed, steps, guidance, how many, and what to keep out."""
        own, fields = of_base(self.app.studio.traits()), self.fields
        low, high = Request.bounds("seed")
        seed = raw.Number(label="Seed", precision=0, minimum=low, maximum=high, **Request.control("seed"))
        with gr.Row(elem_classes="tight"):
            roll = gr.Button("Random", size="sm", min_width=70)
            self.reuse = gr.Button("Reuse the picture's", size="sm", min_width=130)
            self.lock = gr.Checkbox(
                True, label="Lock", container=False, min_width=70, interactive=True, info="Else each has a new seed."
            )
        roll.click(lambda: (random.randrange(2**32), True), None, [seed, self.lock], **QUIET)
        fields |= {"seed": seed, "steps": slider("steps", "Steps")}
        fields["guidance_scale"] = slider("guidance_scale", "Guidance", step=0.1, **own["guidance_scale"])
        fields["num_images"] = slider("num_images", "Pictures")
        fields["negative_prompt"] = gr.Textbox(
            label="Negative prompt", lines=1, **Request.control("negative_prompt"), **own["negative_prompt"]
        )

    def model(self) -> None:
        """The base, and what depends on it."""
        studio, fields = self.app.studio, self.fields
        own = of_base(studio.traits())
        words = "Choose one, or type a folder or Hub id and press Enter." if studio.open_to_bases else "Choose one."
        fields["base"] = raw.Dropdown(
            list(studio.bases), value=studio.first, label="Base", info=f"The model that draws. {words}",
            allow_custom_value=studio.open_to_bases,
        )  # fmt: skip
        fields["sampler"] = raw.Dropdown(label="Sampler", **{**Request.control("sampler"), **own["sampler"]})
        with gr.Row():
            for name in ("width", "height"):
                fields[name] = slider(name, name.capitalize(), **own[name])

    def source(self) -> None:
        """The picture that is drawn from."""
        self.image = gr.Image(
            label="Source picture", type="pil", image_mode="RGB", sources=["upload", "clipboard"], height=220
        )
        hint("What it shows is drawn anew by the prompt; strength says how much of it.")
        self.fields["strength"] = slider("strength", "Strength", step=0.05)

    @property
    def inputs(self) -> list[Any]:
        """All components, in the order of `read`."""
        return list(self.fields.values())

    @property
    def labels(self) -> dict[str, str]:
        """Of each control, by its name."""
        return {name: part.label for name, part in self.fields.items()}

    def read(self, values: Sequence[Any]) -> Request:
        """The request that the values of `inputs` make. Raises ValueError, TypeError."""
        return request_of(dict(zip(self.fields, values, strict=True)))

    def show(self, request: Request) -> dict[Any, Any]:
        """Updates that put a request into the controls, fitted to its base, which is loaded if it is another."""
        base = self.app.studio.base(request.base)
        own = of_base(self.app.studio.traits(base.name))
        given = {name: value for name, value in request.as_dict().items() if value or "value" not in own.get(name, {})}
        given["base"] = base.name
        values = {
            name: {**own.get(name, {}), **({"value": given[name]} if name in given else {})} for name in self.fields
        }
        return {self.fields[name]: gr.update(**parts) for name, parts in values.items()}

    def fit(self, base: str) -> dict[Any, Any]:
        """Updates that fit the controls to a base. It is loaded if it is another."""
        own = of_base(self.app.studio.traits(base))
        return {self.fields[name]: gr.update(**parts) for name, parts in own.items()}


def request_of(values: Mapping[str, Any]) -> Request:
    """The request of what stands in controls; an empty one means the default. Raises ValueError, TypeError."""
    return Request.from_page({name: value for name, value in values.items() if value is not None})


def sound(values: Mapping[str, Any]) -> Request:
    """The request of what was kept: without what it refuses, which was half typed or is of another version."""
    found = Request()
    for name, value in values.items():
        try:
            found = replace(found, **{name: getattr(request_of({name: value}), name)})
        except (ValueError, TypeError):
            continue
    return found


def of_base(traits: Traits) -> dict[str, dict[str, Any]]:
    """Properties of the controls that depend on the base, by field."""
    width, height = traits.size
    side = {"minimum": traits.multiple, "step": traits.multiple, "info": "Pixels."}
    samplers = list(traits.samplers)
    return {
        "sampler": {"choices": samplers, "value": samplers[0], "info": "How the noise is taken away."},
        "width": {**side, "value": width, "maximum": min(4 * width, LARGEST)},
        "height": {**side, "value": height, "maximum": min(4 * height, LARGEST)},
        "guidance_scale": {"value": traits.guidance or 1.0, "visible": traits.guidance is not None},
        "negative_prompt": {"visible": traits.negative},
        "strength": {"visible": traits.image},
    }


def slider(name: str, label: str, step: float = 1, **changes: Any) -> gr.Slider:
    """The slider of a field of the request."""
    low, high = Request.bounds(name)
    given = {**Request.control(name), "minimum": low, "maximum": high, "step": step, "min_width": 200, **changes}
    return raw.Slider(label=label, interactive=True, **given)
