"""Create: a prompt, the adapters with their weights, pictures, and each beside what the base makes of the same seed."""

from __future__ import annotations

import html
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gradio as gr
from PIL import Image

from ui import cards
from ui.library import ERRORS, Library
from ui.studio import Mix, Request, StopFlag, StoppedError, Studio
from ui.view import View

GPU = {"concurrency_id": "gpu", "concurrency_limit": 1}
"""One worker makes all pictures; other requests queue."""
FIELDS = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "num_images")


@contextmanager
def toasts(library: Library) -> Iterator[None]:
    """Show what the library refuses as a message on the page."""
    try:
        yield
    except ERRORS as error:
        raise gr.Error(html.escape(library.plain(error), quote=False), print_exception=False) from None


def build(studio: Studio, library: Library) -> None:
    """Lay out the tab and wire it."""
    flag, pairs = gr.State(StopFlag()), gr.State([])
    chosen = gr.State(lambda: getattr(library.newest(), "name", None))
    with gr.Row(elem_classes="studio"):
        with gr.Column(min_width=0, elem_classes="ask"):
            fields = {"prompt": prompt_box(library)}
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

    def make(values: Mapping[Any, Any], mix: Mix, progress: gr.Progress) -> Iterator[tuple[Any, ...]]:
        """The outputs after each picture, and once more at the end."""
        stop = values[flag]
        stop.clear()
        made: list[tuple[Image.Image | None, Image.Image]] = []
        with toasts(library):
            named = {name: values[field] for name, field in fields.items()}
            if values[random_seed]:
                named["seed"] = random.randrange(2**32)
            request = Request.from_page(named)

            def on_step(done: int, total: int) -> None:
                stop.check()
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
            library, chosen, fields["prompt"], again, go, halt,
            inputs=[*fields.values(), random_seed, compare, flag],
            outputs=[*view.parts, pairs, fields["seed"], status],
            make=make, status=status, flag=flag, limits=GPU,
        )  # fmt: skip
    view.wire(pairs)
    _endpoints(studio, library, fields, view.gallery)


def prompt_box(library: Library) -> gr.Textbox:
    """The prompt, at first the trigger of the newest adapter."""
    first = lambda: getattr(library.newest(), "trigger", "") or cards.START  # noqa: E731
    control = {**Request.control("prompt"), "value": first}
    return gr.Textbox(label="Prompt", lines=2, max_lines=6, autofocus=True, **control)


def settings(studio: Studio) -> dict[str, Any]:
    """The other controls of a request, by field."""
    count = number_slider("num_images", "Number of pictures")
    steps = number_slider("steps", "Steps")
    guidance = number_slider("guidance_scale", "Guidance", step=0.1)
    guidance.visible = "guidance_scale" in studio.accepts
    guidance.value = studio.guidance_scale if studio.guidance_scale is not None else guidance.value
    visible = "negative_prompt" in studio.accepts
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


def tell(request: Request, mix: Mix, count: int) -> str:
    """One line about what was made."""
    used = ", ".join(f"`{entry.name}` × {weight:g}" for entry, weight in mix) or "the base alone"
    return f"{count} of {request.num_images} · {used} · seed {request.seed} · {request.steps} steps"


def _endpoints(studio: Studio, library: Library, fields: Mapping[str, Any], gallery: gr.Gallery) -> None:
    """The same for programs: /generate and /adapters."""

    def generate(*values: Any) -> list[Image.Image]:
        with toasts(library):
            request = Request.from_page(dict(zip(FIELDS, values, strict=False)))
            mix = [(library.find(name), weight) for name, weight in (values[-1] or {}).items()]
            return [picture for _, picture in studio.make(request, mix)]

    weights = gr.JSON(label="Adapters: name -> weight", visible=False)
    gr.Button(visible=False).click(
        generate, [*(fields[name] for name in FIELDS), weights], gallery, api_name="generate", **GPU
    )

    def adapters() -> list[dict]:  # type: ignore[type-arg]  # gradio reads the hint
        """The files of the library: name, family, trigger, base, and why a file is refused."""
        return [entry.describe() for entry in library.scan()]

    gr.api(adapters)
