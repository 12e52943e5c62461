"""The Create tab in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_a_first_picture(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_label("red", exact=True).check()
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Done.").wait_for()
