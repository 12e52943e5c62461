"""Create: a prompt, the adapters with their weights, pictures, and each beside what the base makes of the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
from PIL import Image

from ui import cards
from ui.common import GPU, App
from ui.request import Request
from ui.studio import StoppedError, Studio, Turn
from ui.view import View

FIELDS = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "num_images")


def build(app: App) -> None:
    """Lay out the tab and wire it."""
    studio, turn, pairs = app.studio, gr.State(Turn()), gr.State([])
    chosen = gr.State(lambda: getattr(app.library.newest(studio.base()), "name", None))
    with gr.Row(elem_classes="studio"):
        with gr.Column(min_width=0, elem_classes="ask"):
            fields = {"prompt": prompt_box(app)}
            with gr.Row():
                go = gr.Button("Generate", variant="primary", scale=2, min_width=120)
                halt = gr.Button("Stop", scale=1, min_width=80)
        with gr.Column(min_width=0, elem_classes="results"):
            view = View()
            status = gr.Markdown("", elem_classes="status")
            compare = gr.Checkbox(
                True, interactive=True, label="Compare with the base",
                info="Also make each picture without adapters. Choose a picture to see it beside the base's.",
            )  # fmt: skip
        with gr.Column(min_width=0, elem_classes="mix"):
            deck = gr.Column(min_width=0)
            again = gr.Button("Look for new adapter files", size="sm")
            with gr.Accordion("Settings", open=True):
                fields |= settings(studio)
                random_seed = gr.Checkbox(
                    False, interactive=True, label="Random seed", info="A new seed for every request."
                )

    def make(values: Mapping[Any, Any], mix: dict[str, float], progress: gr.Progress) -> Iterator[tuple[Any, ...]]:
        """The outputs after each picture, and once more at the end."""
        check = values[turn].take()
        made: list[tuple[Image.Image | None, Image.Image]] = []
        with app.toasts():
            named = {name: values[field] for name, field in fields.items()}
            if values[random_seed]:
                named["seed"] = random.randrange(2**32)
            request = Request.from_page(named)

            def on_step(done: int, total: int) -> None:
                check()
                progress((done, total), unit="steps")

            def outputs(word: str) -> tuple[Any, ...]:
                return *view.show(made, request.seed), made, request.seed, f"{word} {tell(request, mix, len(made))}"

            end = "Done."
            try:
                for pair in studio.make(request, mix, compare=values[compare], on_step=on_step):
                    made.append(pair)
                    yield outputs("Working.")
            except StoppedError:
                end = "Stopped."
            yield outputs(end)

    with deck:
        cards.build(
            app, chosen, fields["prompt"], again, go, halt,
            inputs=[*fields.values(), random_seed, compare, turn],
            outputs=[*view.parts, pairs, fields["seed"], status],
            make=make, status=status, turn=turn, limits=GPU,
        )  # fmt: skip
    view.wire(pairs)
    _endpoints(app, fields, view.gallery)


def prompt_box(app: App) -> gr.Textbox:
    """The prompt, at first the trigger of the newest adapter."""
    first = lambda: getattr(app.library.newest(app.studio.base()), "trigger", "") or cards.START  # noqa: E731
    control = {**Request.control("prompt"), "value": first}
    return gr.Textbox(label="Prompt", lines=2, max_lines=6, autofocus=True, **control)


def settings(studio: Studio) -> dict[str, Any]:
    """The other controls of a request, by field."""
    count = number_slider("num_images", "Number of pictures")
    steps = number_slider("steps", "Steps")
    guidance = number_slider("guidance_scale", "Guidance", step=0.1)
    traits = studio.traits()
    guidance.visible = traits.guidance is not None
    guidance.value = traits.guidance or guidance.value
    visible = traits.negative
    negative = gr.Textbox(label="Negative prompt", lines=1, visible=visible, **Request.control("negative_prompt"))
    low, high = Request.bounds("seed")
    seed = gr.Number(label="Seed", precision=0, minimum=low, maximum=high, **Request.control("seed"))
    return {
        "negative_prompt": negative, "seed": seed, "steps": steps, "guidance_scale": guidance, "num_images": count
    }  # fmt: skip


def number_slider(name: str, label: str, step: float = 1) -> gr.Slider:
    """The slider of a field of the request."""
    low, high = Request.bounds(name)
    return gr.Slider(low, high, step=step, label=label, min_width=140, **Request.control(name))


def tell(request: Request, mix: Mapping[str, float], count: int) -> str:
    """One line about what was made."""
    used = ", ".join(f"`{name}` × {weight:g}" for name, weight in mix.items()) or "the base alone"
    return f"{count} of {request.num_images} · {used} · seed {request.seed} · {request.steps} steps"


def _endpoints(app: App, fields: Mapping[str, Any], gallery: gr.Gallery) -> None:
    """The same for programs: /generate and /adapters."""

    def generate(*values: Any) -> list[Image.Image]:
        with app.toasts():
            request = Request.from_page(dict(zip(FIELDS, values, strict=False)))
            return [picture for _, picture in app.studio.make(request, values[-1] or {})]

    weights = gr.JSON(label="Adapters: name -> weight", visible=False)
    gr.Button(visible=False).click(
        generate, [*(fields[name] for name in FIELDS), weights], gallery, api_name="generate", **GPU
    )

    def adapters() -> list[dict]:  # type: ignore[type-arg]  # gradio reads the hint
        """The files of the library: name, family, trigger, base, and why a file is refused."""
        return [entry.describe() for entry in app.library.scan(app.studio.base())]

    gr.api(adapters)
