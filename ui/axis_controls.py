"""The controls of one axis of a grid: what changes along it, whose it is, and its values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.axes import CHOOSERS, KINDS, Axis
from ui.common import SOON
from ui.controls import START

if TYPE_CHECKING:
    from ui.plans import Plans

FIRST = {
    "weight": "0, 0.5, 1", "seed": "0, 1, 2", "steps": "10, 20, 40", "guidance_scale": "1, 2, 4", "prompt": START,
}  # fmt: skip
"""What stands in the box of an axis at first."""


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

    def show(self, axis: Axis | None, base: str) -> list[Any]:
        """Updates of `parts` that put an axis into them; what is not there is left out and told."""
        kind = axis.kind if axis else ""
        of, names, text = self.fit(kind, base)
        if axis is not None:
            if of["visible"]:
                of["value"] = next(iter(self.plans.there([axis.of], _keys(of["choices"]))), of["value"])
            if kind in CHOOSERS:
                names["choices"] = self._values(kind, of["value"], base)
                names["value"] = self.plans.there(map(str, axis.values), _keys(names["choices"]))
            else:
                text["value"] = ("\n" if kind == "prompt" else ", ").join(map(str, axis.values))
        return [kind, of, names, text]

    def read(self, kind: str, of: str | None, names: list[str], text: str, base: str) -> Axis | None:
        """The axis that the values of `parts` make. Raises ValueError."""
        if not kind:
            return None
        every = _keys(self._values(kind, of, base))
        values = (names or every) if kind in CHOOSERS else text
        return Axis.read({"kind": kind, "values": values, "of": of or ""})


def _keys(choices: Iterable[Any]) -> list[str]:
    """What the choices of a list stand for."""
    return [choice[1] if isinstance(choice, tuple) else choice for choice in choices]
