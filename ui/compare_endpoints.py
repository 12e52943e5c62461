"""What programs may ask of Compare: /grid and /blend_map."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import gradio as gr

from ui.axes import Axis
from ui.common import GPU, App
from ui.grid import Plan
from ui.history import store
from ui.plans import BLENDED
from ui.programs import Programs
from ui.recipe import KEY
from ui.request import Request
from ui.scores import pictures_of
from ui.sheet import Result

Sheet = Iterator[tuple[str | None, list[dict[str, Any]]]]
Asked = Annotated[dict[str, Any] | None, "a mapping of fields of /generate to values"]
AXIS = "a mapping of kind, values and perhaps of"


def build(app: App, draw: Callable[[Plan, list[Path], Any, Any], Iterator[Result]]) -> None:
    """Add the endpoints to the open page. `draw` is that of Compare."""

    def drawn(plan: Plan, subject: str, check: Callable[[], None]) -> Sheet:
        yield None, []
        files = pictures_of(subject, app.library) if subject else []
        *_, result = draw(plan, files, check, lambda *_, **__: None)
        cells = [json.loads(result.pictures[i].info[KEY]) for i in range(len(result.cells))]
        told = [{"label": c.label, "scores": result.scores.get(i, {})} for i, c in enumerate(result.cells)]
        rows = [{**one, "recipe": recipe} for one, recipe in zip(told, cells, strict=True)]
        yield store(result.sheet(), sheet.GRADIO_CACHE), rows

    def grid(
        x: Annotated[dict[str, Any], AXIS], y: Annotated[dict[str, Any] | None, AXIS] = None, request: Asked = None,
        adapters: Annotated[list[str] | None, "a list of names, of which each has the weight `weight`"] = None,
        weight: float = 1.0, subject: str = "", *, check: Callable[[], None],
    ) -> Sheet:  # fmt: skip
        """Draw a grid: the sheet, a PNG with its recipe, and label, scores and recipe of each cell. An axis is
        {kind, values, of}; `request` has fields of /generate; `adapters` are in every cell, times `weight`."""
        axes = Axis.read(x), Axis.read(y) if y else None
        plan = Plan(Request.from_page(request or {}), *axes, tuple(adapters or ()), weight)
        yield from drawn(plan, subject, check)

    def blend_map(
        first: str, second: str, alphas: str = BLENDED, betas: str = BLENDED, request: Asked = None, subject: str = "",
        *, check: Callable[[], None],
    ) -> Sheet:  # fmt: skip
        """Draw the α × β map of two adapters; `alphas`, `betas`: numbers, or '0 to 1 in 5'."""
        plan = Plan.of_blend(Request.from_page(request or {}), first, second, alphas, betas)
        yield from drawn(plan, subject, check)

    programs = Programs(app)
    sheet = gr.Image(label="sheet", type="filepath", format="png", visible=False)
    for endpoint in (grid, blend_map):
        programs.add(endpoint, sheet, "cells", **GPU)
