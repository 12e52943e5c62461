"""The controls of the Compare tab: what all pictures share, the axes of a grid, or the adapters of a blend map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ui.axis_controls import AxisControls
from ui.common import QUIET, SOON, App
from ui.controls import START, slider
from ui.grid import Plan
from ui.request import Request
from ui.scores import pictures_of, subjects

GRID, BLEND = "Grid", "Blend map"
NONE = "(none)"
FIELDS = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale")
BLENDED = "0, 0.25, 0.5, 0.75, 1"


class Plans:
    """All controls, laid out where they are made."""

    def __init__(self, app: App) -> None:
        self.app, studio = app, app.studio
        traits = studio.traits()
        self.mode = gr.Radio([GRID, BLEND], value=GRID, label="What to draw", interactive=True,
            info="A grid over settings, or the mixes of two adapters.",
        )  # fmt: skip
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
            self.weight = gr.Slider(
                -1, 2, 1, step=0.05, label="Their weight", info="0 is the base, 1 is as trained.", interactive=True
            )
        with gr.Group(visible=False) as blend:
            pairs = [("First adapter", "α: its weights, across"), ("Second adapter", "β: its weights, down")]
            made = []
            for title, values in pairs:
                made.append(gr.Dropdown([], label=title, info="One of the library.", interactive=True))
                made.append(gr.Textbox(BLENDED, label=values, info="Numbers, or 0 to 1 in 5.", interactive=True))
            self.first, self.alphas, self.second, self.betas = made
        self.fields = {
            "prompt": gr.Textbox(START, label="Prompt", lines=2, max_lines=6, info="What every picture shows."),
            "negative_prompt": gr.Textbox(
                label="Negative prompt", visible=traits.negative, **Request.control("negative_prompt")
            ),
            "seed": gr.Number(label="Seed", precision=0, minimum=0, maximum=2**32 - 1, **Request.control("seed")),
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
        with gr.Accordion("Take up a grid's recipe", open=False):
            drop = gr.File(label="A grid that was downloaded here", file_types=[".png"], type="filepath", height=120)
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
        asked = [self.mode, self.base, *parts, *self.fields.values()]
        self.inputs = [*asked, self.subject, self.files]
        drop.upload(self.dropped, drop, [*asked, drop], **SOON)

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

    def there(self, names: Iterable[str], known: Sequence[str]) -> list[str]:
        """Those of `names` that are known; the others are told."""
        names = list(names)
        for name in names:
            if name not in known:
                gr.Warning(self.app.plain(ValueError(f"there is no {name!r} here for this base")))
        return [name for name in names if name in known]

    def dropped(self, file: str) -> list[Any]:
        """A sheet was given back: updates that put its plan into the controls."""
        with self.app.toasts():
            found = self.show(Plan.read(Path(file)))
        gr.Info("The grid's recipe was taken up.")
        return [*found, None]

    def show(self, plan: Plan) -> list[Any]:
        """Updates of all controls but those of scores, which put a plan into them; what cannot be had is told."""
        request, studio = plan.request, self.app.studio
        base = (self.there([request.base], list(studio.bases)) if request.base else []) or [studio.first]
        self.app.library.scan(studio.base(base[0]))
        names = self.choices(base[0])
        left = {*request.changed()} - {*FIELDS, "base", "num_images"}
        if left:
            gr.Warning(f"Compare has no control for {', '.join(sorted(left))}; the base's own is taken.")
        adapters, weight = self.there(plan.adapters, names), plan.weight
        axes = [None, None] if plan.blend else [plan.x, plan.y]
        updates = [BLEND if plan.blend else GRID, gr.update(value=base[0], choices=list(studio.bases))]
        for controls, axis in zip((self.x, self.y), axes, strict=True):
            updates += [gr.skip()] * len(controls.parts) if plan.blend else controls.show(axis, base[0])
        updates.append(gr.update(choices=names, value=adapters))
        updates.append(gr.update(value=weight, minimum=min(-1, weight), maximum=max(2, weight)))
        for axis in plan.axes if plan.blend else (None, None):
            if axis is None:
                updates += [gr.update(choices=names), gr.skip()]
            else:
                own = next(iter(self.there([axis.of], names)), None)
                updates += [gr.update(choices=names, value=own), ", ".join(map(str, axis.values))]
        return updates + [getattr(request, name) for name in self.fields]

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
