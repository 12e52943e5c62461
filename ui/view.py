"""The results: the chosen picture large, beside what the base made of the same seed, and all pictures small."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from ui.common import QUIET
from ui.history import Shot
from ui.recipe import KEY

HEIGHT = 460


class View:
    """The large view and the history, laid out where they are made."""

    def __init__(self) -> None:
        large = {"height": HEIGHT, "format": "png", "interactive": False, "elem_classes": "large"}
        self.slider = gr.ImageSlider(
            label="Drag: base | with adapters", type="filepath", max_height=HEIGHT, visible=False, **large
        )
        self.single = gr.Image(label="Picture", type="filepath", buttons=["download", "fullscreen"], **large)
        self.status = gr.Markdown("", elem_classes="status", min_height=24)
        self.shots, self.chosen = gr.State([]), gr.State(0)

    def gallery(self) -> None:
        """The history, laid out here."""
        self.history = gr.Gallery(
            label="Your pictures, newest first", show_label=False, format="png", type="filepath", height="auto",
            columns=6, object_fit="cover", allow_preview=False, interactive=False, visible=False,
            elem_classes="pictures",
        )  # fmt: skip
        self.parts = [self.slider, self.single, self.history, self.shots]
        self.history.select(_choose, self.shots, [self.slider, self.single, self.chosen], **QUIET)

    def show(self, shots: Sequence[Shot]) -> tuple[Any, ...]:
        """What to put into `parts`: the newest picture large, all of them small."""
        small = [(picture, f"seed {seed}" if (seed := seed_in(picture)) is not None else None) for _, picture in shots]
        return *_large(shots[0] if shots else None), gr.update(value=small, visible=bool(small)), list(shots)

    def preview(self, file: str) -> tuple[Any, Any]:
        """What to put into the first two of `parts`."""
        return gr.update(value=None, visible=False), gr.update(value=file, visible=True, label="Preview")


def seed_in(file: str) -> int | None:
    """The seed that a picture of ours was made with."""
    with Image.open(file) as image:
        found = re.search(r'"seed": (\d+)', image.info.get(KEY, ""))
    return json.loads(found[1]) if found else None


def _choose(shots: list[Shot], event: gr.SelectData) -> tuple[Any, ...]:
    index = event.index if event.index < len(shots) else 0
    return *_large(shots[index] if shots else None), index


def _large(shot: Shot | None) -> tuple[Any, Any]:
    """Updates of the slider and of the single picture, of which one is to be seen."""
    if shot is None or shot[0] is None:
        return gr.update(value=None, visible=False), gr.update(value=shot and shot[1], visible=True, label="Picture")
    return gr.update(value=shot, visible=True), gr.update(value=None, visible=False)
