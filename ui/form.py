"""The form of a training: the controls of all options, and beginning anew with what is known to be good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from diffusion_adapters import FAMILIES
from diffusion_adapters.options import Options
from train.flags import BASE_FLAG
from ui.choices import FAMILY, TAUGHT, Choices, family_in, groups, presets
from ui.common import QUIET, App
from ui.option_controls import FRONT, UNSET, control, read, shown


class Form:
    """All controls, by the family that they belong to (empty: every one) and the name of their option."""

    def __init__(self, app: App, choices: Choices) -> None:
        self.app, self.choices = app, choices
        self.parts: dict[tuple[str, str], Any] = {}
        self.kinds: dict[tuple[str, str], type[Options]] = {}
        self.columns: dict[str, gr.Column] = {}
        self.first = family_in({})
        self.begin = choices.start(app.studio.first, self.first)
        self.begun, self.known = gr.State([app.studio.first, self.first]), gr.State(UNSET)
        """Base and family, and preset, that the values are for: a list that is left unchanged tells so as well."""

    def build(self) -> None:
        """Lay the controls out: those asked first, those of the family, and the others in folds."""
        owners = {name: kind for kind, names in groups().values() for name in names}
        base_names, open_to = list(self.app.studio.bases), self.app.studio.open_to_bases
        for row in (
            ["instance_prompt"], [FAMILY, BASE_FLAG], ["trigger_word", "resolution"],
            ["max_train_steps", "learning_rate"], ["validation_prompt", "validation_steps"],
        ):  # fmt: skip
            with gr.Row():
                for name in row:
                    if name == BASE_FLAG:
                        more = " Choose one, or type a folder or Hub id." if open_to else ""
                        part = gr.Dropdown(
                            base_names, value=self.app.studio.first, label="Base", allow_custom_value=open_to,
                            info="The frozen model that is taught." + more, interactive=True, min_width=150,
                        )  # fmt: skip
                        self._keep("", name, owners[name], part)
                    else:
                        self._add("", name, owners[name])
        with gr.Accordion("Options of the family", open=False):
            for family in TAUGHT:
                with gr.Column(visible=family == self.first, min_width=0) as self.columns[family]:
                    self._rows(family, FAMILIES[family].Config, list(FAMILIES[family].Config.kinds()))
        for title, (kind, names) in groups().items():
            rest = [name for name in names if name not in FRONT]
            if rest:
                with gr.Accordion(title[:1].upper() + title[1:], open=False):
                    self._rows("", kind, rest)

    def wire(self, preset: gr.Dropdown) -> None:
        """Begin anew, with what is known to be good, when family, base or preset change."""
        family, base = self.parts["", FAMILY], self.parts["", BASE_FLAG]
        given = [base, family, preset, self.begun, self.known]
        gr.on(
            [family.blur, base.blur, preset.blur], self.renew, given, [*self.outputs, self.known],
            trigger_mode="always_last", **QUIET,
        )  # fmt: skip

    def renew(self, base: str, family: str, preset: str | None, begun: list[str], known: str | None) -> dict[Any, Any]:
        """Updates to the values that a base and a family begin with; what the pictures show stays."""
        if ([base, family], preset) == (begun, known):
            return {self.known: known}
        with self.app.toasts():
            values = self.choices.start(base, family, preset or "")
        for name in ("instance_prompt", "trigger_word", "validation_prompt"):
            values.pop(name, None)
        return {**self.show({**values, BASE_FLAG: base}), self.known: preset}

    def show(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates that put values into the controls."""
        family = values.get(FAMILY, self.first)
        found = {}
        for owner, name in self.parts:
            if name in values and owner in ("", family):
                found[self.parts[owner, name]] = shown(self.kinds[owner, name], name, values[name])
        found |= {column: gr.update(visible=name == family) for name, column in self.columns.items()}
        return {**found, self.begun: [values.get(BASE_FLAG, self.app.studio.first), family]}

    @property
    def outputs(self) -> list[Any]:
        """What `show` changes."""
        return [*self.parts.values(), *self.columns.values(), self.begun]

    @property
    def inputs(self) -> list[Any]:
        """All controls, in the order of `read`."""
        return list(self.parts.values())

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """The values of the options for the chosen family, from those of `inputs`. Raises ValueError."""
        given = dict(zip(self.parts, values, strict=True))
        family = given["", FAMILY]
        return {
            name: read(self.kinds[owner, name], name, value)
            for (owner, name), value in given.items() if owner in ("", family)
        }  # fmt: skip

    def preset(self) -> gr.Dropdown:
        """The list of known-good runs."""
        return gr.Dropdown(
            [("(that of the base)", UNSET), *((name, name) for name in presets())], value=UNSET, label="Preset",
            info="A run that is known to be good; choosing one sets all values.", interactive=True, min_width=150,
        )  # fmt: skip

    def _rows(self, family: str, kind: type[Options], names: Sequence[str]) -> None:
        for pair in _pairs(names):
            with gr.Row():
                for name in pair:
                    self._add(family, name, kind)

    def _add(self, family: str, name: str, kind: type[Options]) -> None:
        value = self.begin.get(name) if family in ("", self.first) else None
        self._keep(family, name, kind, control(kind, name, value))

    def _keep(self, family: str, name: str, kind: type[Options], part: Any) -> None:
        self.parts[family, name], self.kinds[family, name] = part, kind


def _pairs(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), 2):
        yield names[start : start + 2]
