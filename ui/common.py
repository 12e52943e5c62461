"""What all tabs share: the worker, the library, the way to another tab, and how errors are shown."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ui.library import ERRORS, Library
from ui.studio import Studio

GPU: dict[str, Any] = {"concurrency_id": "gpu", "concurrency_limit": 1}
"""Of events that make pictures or load models: one worker does them, others queue."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events that touch controls only."""
SOON: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
"""Of those that change a `gr.State` whose `change` is listened to, which gradio tells for queued events alone."""

PAUSE = 0.5
"""Seconds between two messages to a page while it is drawn for."""
KEPT = "diffusion-adapters train"
"""Key and secret of what the browser keeps of the Train tab: it is hidden from nobody."""


@dataclass
class App:
    """What a tab's `build` is given, inside the open page."""

    studio: Studio
    library: Library
    tabs: gr.Tabs | None = None
    recipe: gr.State = field(default_factory=lambda: gr.State(None))
    """Put the `as_dict` of a Recipe here and the Create tab takes it over: outputs `[app.recipe, app.tabs]`."""

    training: gr.BrowserState = field(default_factory=lambda: gr.BrowserState({}, storage_key=KEPT, secret=KEPT))
    """What the browser keeps of the Train tab; here, as what lies in a tab is not there when the page is loaded."""

    def go(self, tab: str) -> Any:
        """The update of `tabs` that opens a tab by its title."""
        return gr.Tabs(selected=tab)

    @contextmanager
    def toasts(self) -> Iterator[None]:
        """Show what the library refuses as a message on the page."""
        try:
            yield
        except ERRORS as error:
            raise gr.Error(self.plain(error), print_exception=False) from None

    def plain(self, error: BaseException) -> str:
        """What an error says, without folders of this computer, as text that may stand in HTML."""
        return html.escape(self.library.plain(error), quote=False)


def paced() -> Callable[[], bool]:
    """A function that is true at first, and then once in `PAUSE`: a page that is told more often stops to answer."""
    last = -PAUSE

    def often() -> bool:
        nonlocal last
        now = time.monotonic()
        last, passed = (now, True) if now - last >= PAUSE else (last, False)
        return passed

    return often
