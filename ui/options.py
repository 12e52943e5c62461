"""Controls for options, built from their one declaration: default, help, bounds and choices."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import gradio as gr


def control(field: dataclasses.Field[Any], kind: type, many: bool, **changes: Any) -> Any:
    """The control of an option; its value goes through `value_of`."""
    meta = field.metadata
    given = {"label": field.name.replace("_", " ").capitalize(), "info": meta["help"], "interactive": True, **changes}
    if meta["choices"]:
        return gr.Dropdown(list(meta["choices"]), value=field.default, **given)
    if kind is bool:
        return gr.Checkbox(bool(field.default), **given)
    if kind in (int, float) and not many and field.default is not None:  # one without a value would be shown as 0
        bounds = meta["bounds"]
        return gr.Number(
            field.default, precision=0 if kind is int else None, minimum=bounds.get("ge"), maximum=bounds.get("le"),
            **given,
        )  # fmt: skip
    shown = "" if field.default is None else ", ".join(map(str, field.default)) if many else str(field.default)
    return gr.Textbox(shown, placeholder="default", **given)


def value_of(field: dataclasses.Field[Any], kind: type, many: bool, value: Any) -> Any:
    """What a control's value means; None for an empty one. Raises ValueError for what is no number."""
    if value is None or value == "" or value == []:
        return None
    if many:
        parts = [part for part in re.split(r"[,;\s]+", str(value).strip()) if part]
        return tuple(_number(part, kind, field.name) for part in parts)
    return _number(value, kind, field.name) if kind in (int, float) else value


def _number(value: Any, kind: type, name: str) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {value!r} is no number") from None
