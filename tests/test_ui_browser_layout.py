"""How the pages are laid out, in a real browser: on a phone, in a narrow window, and for the keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("gradio")
api = pytest.importorskip("playwright.sync_api")

from tests.test_ui_browser_controls import app_url  # noqa: E402, F401  # a fixture
from tests.test_ui_browser_create import take_up  # noqa: E402

HEIGHT = 844
NAME = r"""() => { const one = document.activeElement, label = one.labels && one.labels[0];
  return one.getAttribute('aria-label') || (label || one).innerText.trim().split('\n')[0]; }"""
"""What the control is called that has the focus."""
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


def reach(page: Any, wanted: str) -> list[str]:
    """Press Tab until a control has the focus; the names of those on the way, with its own."""
    passed: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        passed.append(page.evaluate(NAME))
        if re.fullmatch(wanted, passed[-1]):
            return passed
    raise AssertionError(f"Tab does not reach {wanted}: {passed}")


def test_create_and_compare_are_used_by_the_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_text("Preview of 6 steps").wait_for()
    page.locator(".ask textarea").focus()
    assert reach(page, "Generate") == ["Generate"]
    page.keyboard.press("Enter")
    page.get_by_text("Done.").wait_for()
    assert reach(page, "Stop") == ["Stop"]
    reach(page, "Live preview")
    page.keyboard.press("Space")
    assert not page.get_by_label("Live preview").is_checked()
    order = reach(page, "Adapters") + reach(page, "range slider for Weight of red")
    assert [name for name in order if name in ("Look for new adapter files", "red")] == [
        "Look for new adapter files", "red"
    ]  # fmt: skip
    for key, value in (("ArrowRight", "1.05"), ("ArrowLeft", "1"), ("Home", "-1"), ("End", "2")):
        page.keyboard.press(key)
        api.expect(page.get_by_label("number input for Weight of red")).to_have_value(value)
    reach(page, r"When and where red acts.*")
    page.keyboard.press("Space")
    page.get_by_label("number input for From").wait_for()

    page.get_by_role("tab", name="Compare", exact=True).press("Enter")
    page.get_by_role("button", name="Draw the grid").wait_for()
    page.locator(".token:visible").first.wait_for()
    page.get_by_label("number input for Steps").and_(page.locator(":visible")).fill("2")
    page.locator(".ask:visible textarea").first.focus()
    assert reach(page, "Blend map") == ["Grid", "Blend map"]
    page.keyboard.press("Space")
    page.get_by_label("α: its weights, across").wait_for()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    page.get_by_label("Columns", exact=True).wait_for()
    order = ["Blend map", "Columns", "Weight of", "Columns: values", "Rows", "Rows: values", "Draw the grid"]
    assert reach(page, "Draw the grid") == order
    page.keyboard.press("Space")
    page.get_by_text("Done. 9 of 9 pictures.").wait_for()
    reach(page, "weight 0, seed 0")
    page.keyboard.press("Enter")
    page.locator("#sheet [aria-pressed=true]").wait_for()
    reach(page, "Open in Create")
