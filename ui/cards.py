"""One card per adapter of the library: on or off, its weight, its family, trigger and base; and who was refused."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from ui.common import QUIET, App
from ui.library import Entry, Library
from ui.studio import Turn

LOW, HIGH = -1.0, 2.0
START = "a photo of a red ball"
"""The prompt to begin with where no adapter has a trigger."""
EMPTY = (
    "No adapter files here yet. Train one, `accelerate launch train/dreambooth.py`, or start the app with "
    "`--adapters FOLDER`; then look again. Until then you see the base alone."
)


def build(
    app: App,
    chosen: gr.State,
    prompt: gr.Textbox,
    again: gr.Button,
    go: gr.Button,
    halt: gr.Button,
    *,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    make: Callable[[Mapping[Any, Any], dict[str, float], gr.Progress], Iterator[Any]],
    status: gr.Markdown,
    turn: gr.State,
    limits: Mapping[str, Any],
) -> None:
    """Cards that are drawn anew for each page and by `again`; their values travel with each press of `go`."""
    page = gr.context.Context.root_block
    assert page is not None

    memory = gr.State({})

    @gr.render(inputs=[chosen, memory], triggers=[page.load, again.click], show_progress="hidden", queue=False)
    def draw(newest: str | None, before: dict[str, Any]) -> None:
        entries = app.library.scan(app.studio.base())
        usable = [entry for entry in entries if entry.report]
        controls = {}
        for entry in usable:
            on, weight = before.get(entry.name, (entry.name == newest, 1.0))
            switch, slider = controls[entry.name] = _card(entry, on, weight, prompt, app.library)
            gr.on(
                [switch.input, slider.input], partial(_note, entry.name), [memory, switch, slider], memory,
                trigger_mode="always_last", **QUIET,
            )  # fmt: skip
        if not usable:
            gr.Markdown(EMPTY)
        refused = [entry for entry in entries if not entry.report]
        if refused:
            with gr.Accordion(f"Refused files: {len(refused)}", open=False):
                for entry in refused:
                    reason = {"value": entry.reason, "label": entry.name}
                    gr.Textbox(**reason, interactive=False, lines=2, max_lines=6)

        def run(values: dict[Any, Any], progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
            mix = {name: values[weight] for name, (switch, weight) in controls.items() if values[switch]}
            yield from make(values, mix, progress)

        own = [control for pair in controls.values() for control in pair]
        pressed = gr.on(
            [go.click, prompt.submit], run, {*inputs, *own}, list(outputs),
            trigger_mode="once", show_progress_on=outputs[0], api_visibility="private", **limits,
        )  # fmt: skip
        halt.click(_halt, turn, status, cancels=[pressed], queue=False, api_visibility="private")


def _card(entry: Entry, on: bool, value: float, prompt: gr.Textbox, library: Library) -> tuple[gr.Checkbox, gr.Slider]:
    """The card of one usable file; its switch and its weight."""
    assert entry.report is not None
    facts = {"family": entry.family, "base": entry.base, "trigger": entry.trigger or "none"}
    spans = " ".join(f"<span><i>{name}</i> {html.escape(text)}</span>" for name, text in facts.items())
    with gr.Group(elem_classes="card"):
        switch = gr.Checkbox(on, label=entry.name, interactive=True, elem_classes="name")
        gr.HTML(f"<p class='facts'>{spans}</p>")
        weight = gr.Slider(
            LOW, HIGH, value, step=0.05, label=f"Weight of {entry.name}", info="0 is the base, 1 is as trained.",
            interactive=True,
        )  # fmt: skip
        if entry.trigger:
            insert = gr.Button("Put the trigger into the prompt", size="sm")
            insert.click(lambda text: _with_trigger(text, entry.trigger, library), prompt, prompt, **QUIET)
            switch.input(
                lambda is_on, text: _with_trigger(text, entry.trigger, library, only_replace=True) if is_on else text,
                [switch, prompt], prompt, **QUIET,
            )  # fmt: skip
    return switch, weight


def _with_trigger(text: str, trigger: str, library: Library, only_replace: bool = False) -> str:
    """The prompt with `trigger`: instead of nothing or of another adapter's trigger alone, else in front of it."""
    if trigger in text:
        return text
    if not text.strip() or text.strip() in library.triggers() | {START}:
        return trigger
    return text if only_replace else f"{trigger}, {text}"


def _note(name: str, memory: dict[str, Any], on: bool, weight: float) -> dict[str, Any]:
    """Keep what is set on a card for when the cards are drawn anew."""
    memory[name] = (on, weight)
    return memory


def _halt(turn: Turn) -> str:
    turn.end()
    return "Stopped."
