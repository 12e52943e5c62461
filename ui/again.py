"""What may be done with a run that does not train: go on with it, or delete it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui import raw
from ui.common import QUIET
from ui.run import Run

STEPS = "Up to step"


class Again:
    """Its controls, laid out where it is made."""

    def __init__(self) -> None:
        with gr.Row(elem_classes="tight", visible=False) as self.row:
            self.steps = raw.Number(
                value=1, label=STEPS, precision=0, minimum=1, min_width=110, interactive=True,
                info="Of a run that goes on.",
            )  # fmt: skip
            self.resume = gr.Button("Resume", min_width=90)
            self.drop = gr.Button("Delete the run", variant="stop", min_width=110)
            self.sure = gr.Button("Really delete", variant="stop", min_width=110, visible=False)
        self.parts = [self.row, self.steps, self.resume, self.sure]
        asked = gr.update(visible=False), gr.update(visible=True)
        self.drop.click(lambda: asked, None, [self.drop, self.sure], **QUIET)

    def show(self, run: Run | None, moving: bool, total: int) -> dict[Any, Any]:
        """Updates for a run that is moving or not. `total`: the steps to begin with, 0 for those that are set."""
        goes_on = gr.update(visible=bool(run and run.resumable))
        return {
            self.row: gr.update(visible=bool(run) and not moving),
            self.resume: goes_on,
            self.steps: {**goes_on, **({"value": total} if total else {})},
        }
