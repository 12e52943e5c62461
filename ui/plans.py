"""The controls of the Compare tab: what all pictures share, the axes of a grid, or the adapters of a blend map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ui import raw
from ui.axis_controls import AxisControls
from ui.common import QUIET, App, hint
from ui.controls import START, request_of, slider
from ui.grid import Plan
from ui.request import Request
from ui.scores import pictures_of

GRID, BLEND = "Grid", "Blend map"
DRAW = {GRID: "Draw the grid", BLEND: "Draw the map"}
NONE = "(none)"
FIELDS = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale")
BLENDED = "0, 0.25, 0.5, 0.75, 1"


class Plans:
    """All controls by name, in the order of `read`. `ask` and `more` lay them out where they are called."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.parts: dict[str, Any] = {}
        self.files: Any = None
        """What is not kept: it lies in a cache that is cleared."""

    def ask(self) -> None:
        """The prompt, and what is compared."""
        self.parts["prompt"] = gr.Textbox(START, label="Prompt", lines=2, max_lines=6, info="What every picture shows.")
        self.parts["mode"] = gr.Radio(
            [GRID, BLEND], value=GRID, label="What to draw", interactive=True,
            info="A grid over settings, or the mixes of two adapters.",
        )  # fmt: skip
        with gr.Column(min_width=0, elem_classes="axes") as self._grid:
            self.axes = {"x": AxisControls(self, "Columns", "weight"), "y": AxisControls(self, "Rows", "seed")}
        for name, controls in self.axes.items():
            self.parts |= {f"{name}_{part}": control for part, control in controls.parts.items()}
        with gr.Column(visible=False, min_width=0, elem_classes="axes") as self._blend:
            for name, title, values, label in (
                ("first", "First adapter", "alphas", "α: its weights, across"),
                ("second", "Second adapter", "betas", "β: its weights, down"),
            ):
                with gr.Row():
                    common: dict[str, Any] = {"interactive": True, "min_width": 140}
                    self.parts[name] = raw.Dropdown([], label=title, info="One of the library.", **common)
                    self.parts[values] = gr.Textbox(BLENDED, label=label, info="Numbers, or 0 to 1 in 5.", **common)

    def more(self) -> None:
        """What all pictures share, scores, and a sheet given back."""
        studio, parts = self.app.studio, self.parts
        traits = studio.traits()
        with gr.Group() as self._shared:
            parts["adapters"] = raw.Dropdown(
                [], multiselect=True, label="Adapters in every picture", interactive=True,
                info="Weights, seeds and prompts are then compared with these at work.",
            )  # fmt: skip
            parts["weight"] = raw.Slider(
                -1, 2, 1, step=0.05, label="Their weight", info="0 is the base, 1 is as trained.", interactive=True
            )
        self.look = gr.Button("Look for new adapter files", size="sm")
        with gr.Accordion("Settings", open=True):
            parts["seed"] = raw.Number(
                label="Seed", precision=0, minimum=0, maximum=2**32 - 1, **Request.control("seed")
            )
            parts["steps"] = slider("steps", "Steps")
            parts["guidance_scale"] = slider("guidance_scale", "Guidance", step=0.1, value=traits.guidance or 1.0)
            parts["negative_prompt"] = gr.Textbox(
                label="Negative prompt", visible=traits.negative, **Request.control("negative_prompt")
            )
            parts["base"] = raw.Dropdown(
                list(studio.bases), value=studio.first, label="Base", info="The model that draws.", interactive=True
            )
        with gr.Accordion("Scores", open=False):
            parts["subject"] = raw.Dropdown(
                [NONE], value=NONE, label="Subject at hand", interactive=True,
                info="Fidelity to its pictures, and to the prompt, stands under each cell.",
            )  # fmt: skip
            self.files = gr.File(
                label="Or pictures of the subject", file_count="multiple", file_types=["image"], height=120
            )
            hint("Each cell is scored against these instead.")
        with gr.Accordion("Take up a grid's recipe", open=False):
            self.drop = gr.File(
                label="A grid that was downloaded here", file_types=[".png"], type="filepath", height=120
            )
            hint("Its axes, prompt, adapters and settings are put into the controls. A picture of Create works too.")

    def wire(self, go: gr.Button) -> None:
        """What is to be seen for a grid, and for a blend map, and what `go` draws."""
        for controls in self.axes.values():
            controls.wire()
        self.parts["mode"].change(
            lambda mode: [DRAW[mode], *(gr.update(visible=mode == own) for own in (GRID, GRID, BLEND))],
            self.parts["mode"], [go, self._grid, self._shared, self._blend], **QUIET,
        )  # fmt: skip

    @property
    def inputs(self) -> list[Any]:
        """All components, in the order of `read`."""
        return [*self.parts.values(), self.files]

    @property
    def labels(self) -> dict[str, str]:
        """Of the controls of what all pictures share, by name."""
        return {name: self.parts[name].label for name in FIELDS}

    def choices(self, base: str) -> list[str]:
        """Adapters that fit a base."""
        return list(self.app.library.usable(self.app.studio.base(base)))

    def read(self, values: Sequence[Any]) -> tuple[Plan, list[Path]]:
        """The plan, and the pictures of the subject, from the values of `inputs`. Raises ValueError, TypeError."""
        *own, files = values
        given = dict(zip(self.parts, own, strict=True))
        request = request_of({name: given[name] for name in (*FIELDS, "base")})
        pictures = [Path(file) for file in files or ()]
        if not pictures and given["subject"] != NONE:
            pictures = pictures_of(given["subject"], self.app.library)
        if given["mode"] == BLEND:
            pair = (given[name] or "" for name in ("first", "second"))
            return Plan.of_blend(request, *pair, given["alphas"], given["betas"]), pictures
        x, y = (
            controls.read(*(given[f"{name}_{part}"] for part in controls.parts), given["base"])
            for name, controls in self.axes.items()
        )
        if x is None:
            raise ValueError("choose what stands across")
        return Plan(request, x, y, tuple(given["adapters"] or ()), given["weight"]), pictures
