"""The tabs of the app, in their order: title -> function that builds it inside the open page."""

from __future__ import annotations

from collections.abc import Callable

from ui.library import Library
from ui.studio import Studio
from ui.tabs import create

TABS: dict[str, Callable[[Studio, Library], None]] = {"Create": create.build}
