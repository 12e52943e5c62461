"""The control of each option of the trainer, made of its one declaration, and the values that go in and come out."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from typing import Any

import gradio as gr

from diffusion_adapters import FAMILIES
from diffusion_adapters.options import Options, Table
from train.flags import BASE_FLAG
from train.optimizers import OPTIMIZERS
from ui import raw
from ui.choices import FAMILY, TAUGHT, groups

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
