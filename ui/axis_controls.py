"""The controls of one axis of a grid: what changes along it, whose it is, and its values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui import raw
from ui.axes import CHOOSERS, KINDS, Axis
from ui.common import SOON
from ui.controls import START

if TYPE_CHECKING:
    from ui.plans import Plans

FIRST = {
    "weight": "0, 0.5, 1", "seed": "0, 1, 2", "steps": "10, 20, 40", "guidance_scale": "1, 2, 4", "prompt": START,
}  # fmt: skip
"""What stands in the box of an axis at first."""
HELP, NUMBERS = {"prompt": "One a line."}, "0, 0.5, 1 or 0 to 1 in 5."


class AxisControls:
    """Kind, whose it is, and values of one axis, laid out where it is made."""

    def __init__(self, plans: Plans, title: str, kind: str) -> None:
        self.plans = plans
        kinds = [(name, key) for key, name in KINDS.items()]
        kinds += [] if title == "Columns" else [("Nothing: one row", "")]
        common: dict[str, Any] = {"interactive": True, "min_width": 140}
        with gr.Row():
            self.kind = raw.Dropdown(kinds, value=kind, label=title, info="What changes.", **common)
            self.of = raw.Dropdown(
                [], label=f"{title}: of", info="Whose it is.", visible=kind in ("weight", "checkpoint"), **common
            )
            self.names = raw.Dropdown(
                [], multiselect=True, label=f"{title}: values", visible=kind in CHOOSERS,
                info="Each is a picture, in this order. Empty: all.", **common,
            )  # fmt: skip
            self.text = gr.Textbox(
                FIRST.get(kind, ""), label=f"{title}: values", lines=1, max_lines=6, visible=kind not in CHOOSERS,
                info=HELP.get(kind, NUMBERS), **common,
            )  # fmt: skip
        self.meant = gr.State(kind)
        self.parts = {"kind": self.kind, "of": self.of, "names": self.names, "text": self.text, "meant": self.meant}
        """The last is the kind that the others are for: a list that is left unchanged tells so as well."""

    def wire(self) -> None:
        """Another kind has other values, another run other checkpoints."""
        parts, base = list(self.parts.values()), self.plans.parts["base"]
        self.kind.blur(self.turn, [self.kind, self.meant, base], parts, **SOON)
        self.of.input(lambda base, *given: self.fill(given, base)[2], [base, *parts], self.names, **SOON)

    def turn(self, kind: str, meant: str, base: str) -> list[Any]:
        """Updates for another kind."""
        if kind == meant:
            return [gr.skip()] * len(self.parts)
        return self.fill([kind, "", [], FIRST.get(kind, ""), kind], base)

    def fill(self, values: Sequence[Any], base: str) -> list[Any]:
        """Updates that put values into the parts; of what is not there for a base, what is."""
        kind, of, names, text, _ = values
        owners: list[Any] = {
            "weight": [("all adapters", ""), *self.plans.choices(base)], "checkpoint": self._runs(base)
        }.get(kind, [])  # fmt: skip
        of = of if of in keys(owners) else next(iter(keys(owners)), None)
        every = self._values(kind, of, base)
        label = {"checkpoint": "Run", "weight": "Weight of"}.get(kind, "Of")
        return [
            kind,
            gr.update(choices=owners, value=of, visible=bool(owners), label=label),
            gr.update(choices=every, value=[n for n in names or () if n in keys(every)], visible=kind in CHOOSERS),
            gr.update(value=text, visible=bool(kind) and kind not in CHOOSERS, lines=3 if kind == "prompt" else 1,
                      info=HELP.get(kind, NUMBERS)),
            kind,
        ]  # fmt: skip

    def values(self, axis: Axis | None) -> list[Any]:
        """What stands in the parts for an axis."""
        if axis is None:
            return ["", "", [], "", ""]
        chosen = axis.kind in CHOOSERS
        text = ("\n" if axis.kind == "prompt" else ", ").join(map(str, axis.values))
        names = [str(value) for value in axis.values]
        return [axis.kind, axis.of, names if chosen else [], "" if chosen else text, axis.kind]

    def _runs(self, base: str) -> list[str]:
        return list(self.plans.app.library.runs(self.plans.app.studio.base(base)))

    def _values(self, kind: str, of: str | None, base: str) -> list[Any]:
        own = self.plans.app.studio.base(base)
        usable = self.plans.app.library.usable(own)
        if kind == "adapter":
            return [("the base alone", ""), *usable]
        if kind == "checkpoint":
            return list(self.plans.app.library.runs(own).get(of or "", {}))
        return sorted({entry.family for entry in usable.values()}) if kind == "family" else []

    def read(self, kind: str, of: str | None, names: list[str], text: str, meant: str, base: str) -> Axis | None:
        """The axis that the values of `parts` make. Raises ValueError."""
        if not kind:
            return None
        values = (names or keys(self._values(kind, of, base))) if kind in CHOOSERS else text
        return Axis.read({"kind": kind, "values": values, "of": of or ""})


def keys(choices: Iterable[Any]) -> list[str]:
    """What the choices of a list stand for."""
    return [choice[1] if isinstance(choice, tuple) else choice for choice in choices]
