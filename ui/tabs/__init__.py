"""The tabs of the app in their order, each a file here with `build(app)`, called inside the open page."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from ui.common import App

ORDER = ("Create", "Compare", "Train", "Library")
TABS: dict[str, Callable[[App], None]] = {
    title: import_module(f"ui.tabs.{title.lower()}").build for title in ORDER if find_spec(f"ui.tabs.{title.lower()}")
}
