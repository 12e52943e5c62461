"""How the pages are laid out, in a real browser: on a phone, in a narrow window, and for the keyboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("gradio")

from tests.test_ui_browser_controls import app_url  # noqa: F401  # a fixture
from tests.test_ui_browser_create import take_up

HEIGHT = 844
SPILLED = """() => [...document.querySelectorAll('.studio .block')].filter(one => one.offsetParent).flatMap(block => {
  const edge = block.getBoundingClientRect().right + 1;
  return [...block.querySelectorAll('input, button, span, label')].filter(one => one.offsetParent)
    .filter(one => one.getBoundingClientRect().right > edge).map(one => one.outerHTML.slice(0, 100));
})"""
"""What is cut off at the right of its own block."""
CROWDED = """() => [...document.querySelectorAll('.studio .head')].filter(one => one.offsetParent).flatMap(head => {
  const words = document.createRange(), box = head.querySelector('input').getBoundingClientRect();
  words.selectNodeContents(head.querySelector('label, span'));
  return [...words.getClientRects()].filter(line => line.right > box.left && line.left < box.right
    && line.bottom > box.top && line.top < box.bottom).map(() => head.innerText);
})"""
"""Labels of sliders that lie under their number."""


def box(page: Any, selector: str) -> dict[str, float]:
    """Where the first that is seen lies, in pixels of the page scrolled to its top."""
    page.evaluate("window.scrollTo(0, 0)")
    found = page.locator(selector).and_(page.locator(":visible")).first.bounding_box()
    return {**found, "bottom": found["y"] + found["height"], "right": found["x"] + found["width"]}


def fits(page: Any, width: int) -> None:
    """Nothing is wider than the window or than its own frame."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(SPILLED) == []
    assert page.evaluate(CROWDED) == []


def test_on_a_phone_the_picture_comes_before_the_cards(open_page: Callable[..., Any]) -> None:
    page = open_page(width=390, height=HEIGHT)
    take_up(page, "both")
    for name in ("both", "red"):
        page.get_by_text(f"When and where {name} acts").click()
    page.get_by_role("button", name="Base, sampler, size").click()
    page.get_by_label("number input for Width").wait_for()
    for width in (390, 800):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        page.wait_for_timeout(300)
        fits(page, width)
        prompt, go, picture, cards = (box(page, one) for one in (".ask textarea", ".ask .primary", ".large", ".mix"))
        assert prompt["bottom"] <= go["y"]
        assert picture["bottom"] <= HEIGHT
        assert cards["y"] >= (picture["bottom"] if width == 390 else go["bottom"])
        assert (picture["y"] >= go["bottom"]) if width == 390 else (picture["x"] >= prompt["right"])
        assert page.locator("footer .divider").first.is_visible() == (width == 800)

    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator(".token:visible").first.wait_for()
    for width in (390, 800):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        page.wait_for_timeout(300)
        for mode in ("Blend map", "Grid"):
            page.get_by_label(mode, exact=True).check()
            page.wait_for_timeout(300)
            fits(page, width)
            prompt, go, status, more = (
                box(page, one) for one in (".ask textarea", ".ask .primary", ".results .prose", ".mix")
            )
            assert prompt["bottom"] <= go["y"]
            assert go["bottom"] <= HEIGHT
            assert more["y"] >= (status["bottom"] if width == 390 else go["bottom"])
            assert (status["y"] >= go["bottom"]) if width == 390 else (status["x"] >= prompt["right"])
