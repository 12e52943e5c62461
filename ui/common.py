"""What all tabs share: the worker, the library, the way to another tab, and how errors are shown."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import gradio as gr

from ui.library import ERRORS, Library
from ui.studio import Studio
from ui.words import worded

GPU: dict[str, Any] = {"concurrency_id": "gpu", "concurrency_limit": 1}
"""Of events that make pictures or load models: one worker does them, others queue."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events that touch controls only."""
SOON: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
"""Of those that change a `gr.State` whose `change` is listened to, which gradio tells for queued events alone."""

COMPARE = "diffusion-adapters compare"
"""Where the browser keeps what is set in the Compare tab."""
PAUSE = 0.5
"""Seconds between two messages to a page while it is drawn for."""


@dataclass
class App:
    """What a tab's `build` is given, inside the open page."""

    studio: Studio
    library: Library
    tabs: gr.Tabs | None = None
    recipe: gr.State = field(default_factory=lambda: gr.State(None))
    """Put the `as_dict` of a Recipe here and the Create tab takes it over: outputs `[app.recipe, app.tabs]`."""

    visitor: gr.BrowserState = field(default_factory=lambda: kept("diffusion-adapters visitor", ""))
    """A name that nobody guesses, under which pictures are found again; drawn when the page is first loaded."""

    opened: gr.BrowserState = field(default_factory=lambda: kept("diffusion-adapters tab", ""))
    """The title of the tab that is open."""

    training: gr.BrowserState = field(default_factory=lambda: kept("diffusion-adapters train"))
    """What the browser keeps of the Train tab; here, as what lies in a tab is not there when the page is loaded."""

    comparing: gr.BrowserState = field(default_factory=lambda: kept(COMPARE))
    """What it keeps of the Compare tab."""

    def go(self, tab: str) -> Any:
        """The update of `tabs` that opens a tab by its title."""
        return gr.Tabs(selected=tab)

    @contextmanager
    def toasts(self, labels: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
        """Show what the library refuses as a message on the page. `labels`: of the controls of what is checked."""
        try:
            yield
        except ERRORS as error:
            said = self.plain(error)
            raise gr.Error(worded(said, labels) if labels else said, print_exception=False) from None

    def warn(self, words: str) -> None:
        """A message on the page, without folders of this computer."""
        gr.Warning(self.plain(ValueError(words)))

    def plain(self, error: BaseException) -> str:
        """What an error says, without folders of this computer, as text that may stand in HTML."""
        return html.escape(self.library.plain(error), quote=False)


def kept(key: str, default: Any = None) -> gr.BrowserState:
    """What the browser keeps under a key. It is hidden from nobody, and must be read again after a restart."""
    return gr.BrowserState({} if default is None else default, storage_key=key, secret=key)


def look_into(drop: gr.File, take: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Have `take` look into what is dropped, and clear the box for the next whatever comes of it."""
    looked = drop.upload(take, inputs, outputs, **SOON)
    for ended in (looked.success, looked.failure):  # gradio begins what is to come `then` after a success alone
        ended(lambda: None, None, drop, **QUIET)


def hint(words: str) -> None:
    """The help of a control that shows none of its own; it stands below it."""
    gr.Markdown(words, elem_classes="hint")


def paced() -> Callable[[], bool]:
    """A function that is true at first, and then once in `PAUSE`: a page that is told more often stops to answer."""
    last = -PAUSE

    def often() -> bool:
        nonlocal last
        now = time.monotonic()
        last, passed = (now, True) if now - last >= PAUSE else (last, False)
        return passed

    return often
