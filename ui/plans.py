"""The controls of the Compare tab: what all pictures share, the axes of a grid, or the adapters of a blend map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ui.axes import CHOOSERS, KINDS, Axis
from ui.common import QUIET, SOON, App
from ui.controls import START, slider
from ui.grid import Plan
from ui.request import Request
from ui.scores import pictures_of, subjects

GRID, BLEND = "Grid", "Blend map"
NONE = "(none)"
FIRST = {
    "weight": "0, 0.5, 1", "seed": "0, 1, 2", "steps": "10, 20, 40", "guidance_scale": "1, 2, 4", "prompt": START,
}  # fmt: skip
"""What stands in the box of an axis at first."""
FIELDS = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale")
BLENDED = "0, 0.25, 0.5, 0.75, 1"


class AxisControls:
    """Kind, whose it is, and values of one axis, laid out where it is made."""

    def __init__(self, plans: Plans, title: str, kind: str) -> None:
        self.plans = plans
        kinds = [(name, key) for key, name in KINDS.items()]
        kinds += [] if title == "Columns" else [("Nothing: one row", "")]
        self.kind = gr.Dropdown(kinds, value=kind, label=title, info="The setting that changes.", interactive=True)
        self.of = gr.Dropdown([], label=f"{title}: of", interactive=True, visible=False)
        self.names = gr.Dropdown(
            [], multiselect=True, label=f"{title}: values", interactive=True, visible=kind in CHOOSERS,
            info="Each is a picture, in this order. Empty: all.",
        )  # fmt: skip
        self.text = gr.Textbox(
            FIRST.get(kind, ""), label=f"{title}: values", lines=1, max_lines=6, interactive=True,
            visible=kind not in CHOOSERS, info="0, 0.5, 1 or 0 to 1 in 5. Prompts: one a line.",
        )  # fmt: skip
        self.parts = [self.kind, self.of, self.names, self.text]
        self.kind.input(self.fit, [self.kind, plans.base], self.parts[1:], **SOON)
        self.of.input(self.steps, [self.kind, self.of, plans.base], self.names, **SOON)

    def fit(self, kind: str, base: str, fresh: bool = True) -> tuple[Any, ...]:
        """Updates for a kind of axis; what is typed stays unless it is `fresh`."""
        own = self.plans.app.studio.base(base)
        library = self.plans.app.library
        runs = list(library.runs(own))
        of = {"weight": [("all adapters of a cell", ""), *self.plans.choices(base)], "checkpoint": runs}.get(kind, [])
        first = {"weight": "", "checkpoint": next(iter(runs), None)}.get(kind)  # None where there is no choice
        label = {"checkpoint": "Run", "weight": "Weight of"}.get(kind, "Of")
        return (
            gr.update(choices=of, value=first, visible=bool(of), label=label),
            gr.update(choices=self._values(kind, first, base), value=[], visible=kind in CHOOSERS),
            gr.update(value=FIRST.get(kind, ""), visible=bool(kind) and kind not in CHOOSERS,
                      lines=3 if kind == "prompt" else 1) if fresh else gr.skip(),
        )  # fmt: skip

    def steps(self, kind: str, of: str | None, base: str) -> Any:
        """The checkpoints of another run."""
        return gr.update(choices=self._values(kind, of, base), value=[]) if kind == "checkpoint" else gr.skip()

    def _values(self, kind: str, of: str | None, base: str) -> list[Any]:
        own = self.plans.app.studio.base(base)
        usable = self.plans.app.library.usable(own)
        if kind == "adapter":
            return [("the base alone", ""), *usable]
        if kind == "checkpoint":
            return list(self.plans.app.library.runs(own).get(of or "", {}))
        return sorted({entry.family for entry in usable.values()}) if kind == "family" else []

    def read(self, kind: str, of: str | None, names: list[str], text: str, base: str) -> Axis | None:
        """The axis that the values of `parts` make. Raises ValueError."""
        if not kind:
            return None
        every = [value[1] if isinstance(value, tuple) else value for value in self._values(kind, of, base)]
        values = (names or every) if kind in CHOOSERS else text
        return Axis.read({"kind": kind, "values": values, "of": of or ""})


class Plans:
    """All controls, laid out where they are made."""

    def __init__(self, app: App) -> None:
        self.app, studio = app, app.studio
        traits = studio.traits()
        self.mode = gr.Radio([GRID, BLEND], value=GRID, label="What to draw", interactive=True)
        self.base = gr.Dropdown(
            list(studio.bases), value=studio.first, label="Base", info="The model that draws.", interactive=True
        )
        with gr.Group() as grid:
            self.x = AxisControls(self, "Columns", "weight")
            self.y = AxisControls(self, "Rows", "seed")
            self.adapters = gr.Dropdown(
                [], multiselect=True, label="Adapters in every picture", interactive=True,
                info="Weights, seeds and prompts are then compared with these at work.",
            )  # fmt: skip
            self.weight = gr.Slider(-1, 2, 1, step=0.05, label="Their weight", interactive=True)
        with gr.Group(visible=False) as blend:
            pairs = [("First adapter", "α: its weights, across"), ("Second adapter", "β: its weights, down")]
            made = []
            for title, values in pairs:
                made.append(gr.Dropdown([], label=title, interactive=True))
                made.append(gr.Textbox(BLENDED, label=values, info="Numbers, or 0 to 1 in 5.", interactive=True))
            self.first, self.alphas, self.second, self.betas = made
        self.fields = {
            "prompt": gr.Textbox(START, label="Prompt", lines=2, max_lines=6, info="What every picture shows."),
            "negative_prompt": gr.Textbox("", label="Negative prompt", visible=traits.negative),
            "seed": gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed"),
            "steps": slider("steps", "Steps"),
            "guidance_scale": slider("guidance_scale", "Guidance", step=0.1, value=traits.guidance or 1.0),
        }
        with gr.Accordion("Scores", open=False):
            self.subject = gr.Dropdown(
                [NONE], value=NONE, label="Subject at hand", interactive=True,
                info="Fidelity to its pictures, and to the prompt, stands under each cell.",
            )  # fmt: skip
            self.files = gr.File(
                label="Or pictures of the subject", file_count="multiple", file_types=["image"], height=120
            )
        again = gr.Button("Look for new adapter files", size="sm")
        self.mode.change(
            lambda mode: (gr.update(visible=mode == GRID), gr.update(visible=mode == BLEND)), self.mode, [grid, blend],
            **QUIET,
        )  # fmt: skip
        page = gr.context.Context.root_block
        assert page is not None
        lists = [self.adapters, self.first, self.second, self.subject, *self.x.parts[1:], *self.y.parts[1:]]
        lists += [self.fields["prompt"], self.base]
        kinds = [self.base, self.adapters, self.first, self.second, self.x.kind, self.y.kind, self.fields["prompt"]]
        gr.on([page.load, again.click, self.base.input], self.refresh, kinds, lists, **SOON)
        parts = [*self.x.parts, *self.y.parts, self.adapters, self.weight, *made]
        self.inputs = [self.mode, self.base, *parts, *self.fields.values(), self.subject, self.files]

    def choices(self, base: str) -> list[str]:
        """Adapters that fit a base."""
        return list(self.app.library.usable(self.app.studio.base(base)))

    def refresh(
        self, base: str, adapters: list[str], first: str, second: str, x: str, y: str, prompt: str
    ) -> tuple[Any, ...]:
        """Fill the lists after a look at the library; what was chosen stays if it is there."""
        self.app.library.scan(self.app.studio.base(base))
        names = self.choices(base)
        first = first if first in names else next(iter(names), None)
        second = second if second in names else next((name for name in names if name != first), None)
        kept = [name for name in adapters or names[:1] if name in names]
        if kept and prompt in {START, *self.app.library.triggers()}:
            prompt = self.app.library.usable(self.app.studio.base(base))[kept[0]].trigger or prompt
        known = [NONE, *subjects(self.app.library)]
        return (
            gr.update(choices=names, value=kept), gr.update(choices=names, value=first),
            gr.update(choices=names, value=second), gr.update(choices=known),
            *self.x.fit(x, base, False), *self.y.fit(y, base, False), prompt,
            gr.update(choices=list(self.app.studio.bases)),
        )  # fmt: skip

    def read(self, values: Sequence[Any]) -> tuple[Plan, list[Path]]:
        """The plan, and the pictures of the subject, from the values of `inputs`. Raises ValueError, TypeError."""
        (mode, base, *rest), width = values, len(self.x.parts)
        x, y, rest = rest[:width], rest[width : 2 * width], rest[2 * width :]
        adapters, weight, first, alphas, second, betas, *rest = rest
        own = dict(zip(self.fields, rest, strict=False))
        subject, files = rest[len(own) :]
        request = Request.from_page({**own, "base": base})
        pictures = [Path(file) for file in files or ()]
        if not pictures and subject != NONE:
            pictures = pictures_of(subject, self.app.library)
        if mode == BLEND:
            return Plan.of_blend(request, first or "", second or "", alphas, betas), pictures
        axes = self.x.read(*x, base), self.y.read(*y, base)
        if axes[0] is None:
            raise ValueError("choose what stands across")
        return Plan(request, axes[0], axes[1], tuple(adapters or ()), weight), pictures
