"""The results: small pictures, and the chosen one large, beside what the base made of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ui.common import QUIET
from ui.studio import Pair

HEIGHT = 440


class View:
    """The gallery and the large view, laid out where it is made."""

    def __init__(self) -> None:
        large = {"height": HEIGHT, "format": "png", "type": "pil", "interactive": False}
        self.slider = gr.ImageSlider(
            label="Drag: base | with adapters", max_height=HEIGHT, visible=False, elem_classes="large", **large
        )
        self.single = gr.Image(label="Picture", buttons=["download", "fullscreen"], elem_classes="large", **large)
        self.gallery = gr.Gallery(
            label="Pictures of this request", show_label=False, format="png", type="pil", height="auto",
            columns=4, fit_columns=False, object_fit="cover", allow_preview=False, interactive=False, visible=False,
            elem_classes="pictures",
        )  # fmt: skip
        self.parts = [self.slider, self.single, self.gallery]

    def show(self, made: Sequence[Pair], seed: int) -> tuple[Any, ...]:
        """What to put into `parts`: the first picture large, all of them small if they are several."""
        small = [(picture, f"seed {seed + i}") for i, (_, picture) in enumerate(made)]
        return *_large(made[0] if made else None), gr.update(value=small, visible=len(small) > 1)

    def wire(self, pairs: gr.State) -> None:
        """Show the picture large that is chosen in the gallery."""

        def choose(made: list[Pair], event: gr.SelectData) -> tuple[Any, ...]:
            return _large(made[event.index] if event.index < len(made) else None)

        self.gallery.select(choose, pairs, [self.slider, self.single], **QUIET)


def _large(pair: Pair | None) -> tuple[Any, Any]:
    """Updates of the slider and of the single picture, of which one is to be seen."""
    if pair is None or pair[0] is None:
        return gr.update(value=None, visible=False), gr.update(value=pair and pair[1], visible=True)
    return gr.update(value=pair, visible=True), gr.update(value=None, visible=False)
