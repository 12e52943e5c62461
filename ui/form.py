"""The controls of the trainer's options, each made of its one declaration, and the values that go in and come out."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from diffusion_adapters import FAMILIES
from diffusion_adapters.options import Options, Table
from train.flags import BASE_FLAG
from train.optimizers import OPTIMIZERS
from ui import raw
from ui.choices import FAMILY, TAUGHT, Choices, family_in, groups, presets
from ui.common import QUIET, App

FRONT = {
    "instance_prompt": "Prompt of the pictures", "trigger_word": "Trigger word", FAMILY: "Family", BASE_FLAG: "Base",
    "max_train_steps": "Steps", "learning_rate": "Learning rate", "resolution": "Resolution",
    "validation_prompt": "Validation prompts", "validation_steps": "Steps between samples",
}  # fmt: skip
"""Options that are asked first, with their labels; the others lie in folds."""
OFFERED = {"optimizer": tuple(OPTIMIZERS), FAMILY: TAUGHT}
"""Choices of options that the command line names freely."""
UNSET = ""
"""How a choice that is left to the trainer stands in a list."""


def label(name: str) -> str:
    """Of an option: `lr_warmup_steps` is `Lr warmup steps`."""
    return FRONT.get(name) or name.replace("_", " ").capitalize()


@functools.cache
def labels() -> dict[str, str]:
    """Of every control of the form, by the name of its option."""
    names = [name for _, own in groups().values() for name in own]
    return {name: label(name) for name in [*names, *(n for family in TAUGHT for n in FAMILIES[family].Config.kinds())]}


def control(kind: type[Options], name: str, value: Any = None, **changes: Any) -> Any:
    """The component for option `name` of a declaration."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    of, optional = kind.kinds()[name]
    value = field.default if value is None else value
    said = field.metadata["help"].split(":")[0] if name in OFFERED else field.metadata["help"]
    common = {"label": label(name), "info": said[:1].upper() + said[1:] + ".", "interactive": True, "min_width": 150}
    common |= changes
    choices = OFFERED.get(name) or field.metadata.get("choices")
    if of is bool:
        return gr.Checkbox(bool(value), **common)
    if choices:
        listed = [("(default)", UNSET)] * optional + [(str(choice), choice) for choice in choices]
        return gr.Dropdown(listed, value=UNSET if value is None else value, **common)
    if of in (int, float) and not optional:  # a number without a value would be shown as 0
        bounds = field.metadata["bounds"]
        whole = {"precision": 0} if of is int else {}
        return raw.Number(value, minimum=bounds.get("ge"), maximum=bounds.get("le"), **whole, **common)
    lines = {"lines": 2, "max_lines": 6} if of is tuple and kind.items(name) is str else {"lines": 1, "max_lines": 4}
    if of is tuple:
        common["info"] += " One in a line." if kind.items(name) is str else " Separated by commas."
    placeholder = {"placeholder": "default"} if optional else {}
    return gr.Textbox(shown(kind, name, value), **lines, **placeholder, **common)


def shown(kind: type[Options], name: str, value: Any) -> Any:
    """How the value of an option stands in its control."""
    of, optional = kind.kinds()[name]
    if of is tuple and isinstance(value, (list, tuple)):
        return ("\n" if kind.items(name) is str else ", ").join(map(str, value))
    if of in (int, float) and optional and value is not None:
        return f"{value:g}" if of is float else str(value)
    if of is Table and value is not None:
        return str(Table(value))
    return UNSET if value is None and of is not bool else value


def read(kind: type[Options], name: str, value: Any) -> Any:
    """The value of an option from what stands in its control; None if nothing does. Raises ValueError."""
    of, _ = kind.kinds()[name]
    if isinstance(value, str):
        value = value.strip()
    if value in (None, UNSET):
        return None
    if of is Table and isinstance(value, str):
        try:
            return Table.read(value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{name}: {error}") from None
    if of not in (int, float, tuple) or not isinstance(value, str):
        return value
    one = kind.items(name) if of is tuple else of
    parts = re.split(r"\n" if one is str else r"[\n,;]", value) if of is tuple else [value]
    try:
        found = [one(part.strip()) for part in parts if part.strip()]
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[one]
        raise ValueError(f"{name} must be {wanted}{' in each place' if of is tuple else ''}, got {value!r}") from None
    return (found or None) if of is tuple else found[0]


class Form:
    """All controls, by the family that they belong to (empty: every one) and the name of their option."""

    def __init__(self, app: App, choices: Choices) -> None:
        self.app, self.choices = app, choices
        self.parts: dict[tuple[str, str], Any] = {}
        self.kinds: dict[tuple[str, str], type[Options]] = {}
        self.columns: dict[str, gr.Column] = {}
        self.first = family_in({})
        self.begin = choices.start(app.studio.first, self.first)

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
        everything = [*self.parts.values(), *self.columns.values()]
        gr.on(
            [family.input, base.input, preset.input], self.renew, [base, family, preset], everything,
            trigger_mode="always_last", **QUIET,
        )  # fmt: skip

    def renew(self, base: str, family: str, preset: str | None) -> dict[Any, Any]:
        """Updates to the values that a base and a family begin with; what the pictures show stays."""
        with self.app.toasts():
            values = self.choices.start(base, family, preset or "")
        for name in ("instance_prompt", "trigger_word", "validation_prompt"):
            values.pop(name, None)
        return self.show(values)

    def show(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates that put values into the controls."""
        family = values.get(FAMILY, self.first)
        found = {}
        for owner, name in self.parts:
            if name in values and owner in ("", family):
                found[self.parts[owner, name]] = shown(self.kinds[owner, name], name, values[name])
        return found | {column: gr.update(visible=name == family) for name, column in self.columns.items()}

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
