"""The Compare tab in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")
api = pytest.importorskip("playwright.sync_api")

from tests.browser import WAIT  # noqa: E402
from ui.common import COMPARE as STORE  # noqa: E402
from ui.grid import Plan  # noqa: E402
from ui.scores import SAMPLE  # noqa: E402


def ready(page: Any) -> None:
    """Wait until the lists are filled."""
    page.locator(".token:visible", has_text="green").wait_for()


def small(page: Any, columns: str, rows: str) -> None:
    """Few steps, and the values of both axes of a grid."""
    page.get_by_label("Columns: values").and_(page.locator("textarea")).fill(columns)
    page.get_by_label("Rows: values").and_(page.locator("textarea")).fill(rows)
    steps(page)


def steps(page: Any, count: str = "2") -> None:
    page.get_by_label("number input for Steps").and_(page.locator(":visible")).fill(count)
    page.keyboard.press("Tab")


def drop(page: Any, file: Path) -> None:
    """Give a PNG back to the tab that is seen."""
    page.locator(".mix:visible input[type=file][accept='.png']").set_input_files(file)


def cell(page: Any, number: int) -> Any:
    return page.locator(f"#sheet [data-pick='{number}']")


def test_a_grid_fills_is_looked_into_and_kept(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(tab="Compare")
    ready(page)
    small(page, "0, 1", "3, 4")
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_text("Done. 4 of 4 pictures.").wait_for()
    cell(page, 0).focus()
    page.keyboard.press("Enter")
    page.get_by_text("weight 0, seed 3").wait_for()
    cell(page, 3).click()
    page.get_by_text("weight 0, seed 3 | weight 1, seed 4").wait_for()
    page.get_by_text("Drag: chosen before | chosen now").wait_for()
    source = page.locator(".large:visible img").last.get_attribute("src")
    (tmp_path / "picture.png").write_bytes(page.request.get(source).body())
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the grid").click()
    download.value.save_as(tmp_path / "sheet.png")
    assert Plan.read(tmp_path / "sheet.png").x.values == (0, 1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 192
    small(page, "7", "8")
    steps(page, "9")
    page.get_by_text("Take up a grid's recipe").click()
    drop(page, tmp_path / "sheet.png")
    page.get_by_text("The grid's recipe was taken up.").wait_for()
    for label, value in (("Columns: values", "0, 1"), ("Rows: values", "3, 4")):
        box = page.get_by_label(label).and_(page.locator("textarea"))
        api.expect(box).to_have_value(value)
    page.get_by_role("button", name="Open in Create").click()
    seed = page.get_by_label("Seed", exact=True).and_(page.locator(":visible"))
    api.expect(seed).to_have_value("4")

    page.get_by_text("Take up a picture's recipe").click()  # each tab takes what the other made
    drop(page, tmp_path / "sheet.png")
    page.get_by_text("Create took its first picture: weight 0, seed 3.").wait_for()
    api.expect(seed).to_have_value("3")
    page.get_by_role("tab", name="Compare", exact=True).click()
    drop(page, tmp_path / "picture.png")
    page.get_by_text("This is a picture of Create: its settings and adapters were taken up").wait_for()
    api.expect(seed).to_have_value("4")


def test_what_cannot_be_drawn_is_a_toast_and_what_a_stop_leaves_stays(
    open_page: Callable[..., Any], hold: Callable[[int], Any], tmp_path: Path
) -> None:
    page = open_page(tab="Compare")
    ready(page)
    small(page, "0, x", "1")
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_text("is no list of numbers").wait_for()
    small(page, "0, 1", "3, 4")
    held = hold(1)
    page.get_by_role("button", name="Draw the grid").click()
    assert held.begun.wait(WAIT / 1000)
    small(page, "1", "5")
    page.get_by_role("button", name="Draw the grid").click()  # in place of what is drawn
    assert held.stopped.wait(WAIT / 1000)
    held.let_go.set()
    page.get_by_text("Done. 1 of 1 pictures.").wait_for()
    page.get_by_text("Take up a grid's recipe").click()
    for name in ("plain", "other"):  # the box is there for the next
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        drop(page, tmp_path / f"{name}.png")
        page.get_by_text(f"{name}.png has no recipe").wait_for()
        page.get_by_text(f"{name}.png", exact=True).wait_for(state="detached")
    small(page, "0 to 1 in 12", "0 to 11 in 12")
    held = hold(2)
    page.get_by_role("button", name="Draw the grid").click()
    assert held.begun.wait(WAIT / 1000)
    page.get_by_role("button", name="Stop").and_(page.locator(":visible")).press("Enter")
    page.get_by_text("Stopped. 2 of 144 pictures.").wait_for()
    assert held.stopped.wait(WAIT / 1000)
    assert page.locator("#sheet [data-pick]").count() == 2
    cell(page, 1).click()
    page.get_by_text("weight 0.090909, seed 0").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the grid").click()
    download.value.save_as(tmp_path / "sheet.png")
    assert len(Plan.read(tmp_path / "sheet.png").x.values) == 12

    held = hold(1)
    page.get_by_role("button", name="Draw the grid").click()
    assert held.begun.wait(WAIT / 1000)
    page.reload()  # it survives, as does what was drawn
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.get_by_text("Drawn before: 1 of 144 pictures.").wait_for()
    held.let_go.set()
    cell(page, 0).click()
    page.get_by_text("weight 0, seed 0").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the grid").click()
    download.value.save_as(tmp_path / "again.png")
    assert Plan.read(tmp_path / "again.png") == Plan.read(tmp_path / "sheet.png")


def test_a_click_on_the_blend_map_takes_that_mix(open_page: Callable[..., Any]) -> None:
    page = open_page(tab="Compare", width=390, height=844)
    ready(page)
    page.get_by_label("Blend map").check()
    page.get_by_label("α: its weights, across").fill("0, 0.5")
    page.get_by_label("β: its weights, down").fill("1, 0.25")
    steps(page)
    page.get_by_role("button", name="Draw the map").click()
    page.get_by_text("Done. 4 of 4 pictures.").wait_for()
    cell(page, 3).click()
    page.get_by_text("Create has this mix now.").wait_for()
    page.get_by_role("tab", name="Create", exact=True).click()
    for name, weight in (("green", "0.5"), ("red", "0.25")):
        api.expect(page.get_by_label(f"number input for Weight of {name}")).to_have_value(weight)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def kept(page: Any, act: Callable[[], None]) -> None:
    """Do something, and wait until the browser keeps it."""
    page.wait_for_function(f"localStorage.getItem({STORE!r})")
    before = page.evaluate(f"localStorage.getItem({STORE!r})")
    act()
    page.wait_for_function(f"old => localStorage.getItem({STORE!r}) != old", arg=before)


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).and_(page.locator("input:visible")).click()
    page.get_by_role("option", name=option, exact=True).click()
    page.keyboard.press("Tab")
    page.get_by_role("option").first.wait_for(state="detached")


def test_what_is_set_survives_a_reload(open_page: Callable[..., Any]) -> None:
    page = open_page(tab="Compare")
    ready(page)
    prompt = page.locator(".ask:visible textarea").first
    prompt.fill("a red boat")
    small(page, "0.25, 0.75", "3, 4")
    choose(page, "Rows", "Adapter")
    choose(page, "Rows: values", "red")
    choose(page, "Weight of", "green")
    choose(page, "Adapters in every picture", "red")
    page.get_by_role("button", name="Scores").click()
    choose(page, "Subject at hand", SAMPLE)
    page.get_by_label("Columns", exact=True).and_(page.locator("input:visible")).focus()  # looked at, and left
    page.keyboard.press("Tab")
    page.get_by_label("Blend map").check()
    kept(page, lambda: page.get_by_label("α: its weights, across").fill("0, half typed"))

    page.reload()
    page.get_by_role("tab", name="Compare", exact=True).click()
    api.expect(page.get_by_label("α: its weights, across")).to_have_value("0, half typed")
    kept(page, lambda: page.get_by_label("Grid", exact=True).check())
    page.reload()
    page.get_by_role("tab", name="Compare", exact=True).click()
    for label, value in (
        ("Columns", "Weight"), ("Weight of", "green"), ("Rows", "Adapter"), ("number input for Steps", "2"),
    ):  # fmt: skip
        box = page.get_by_label(label, exact=True).and_(page.locator("input:visible"))
        api.expect(box).to_have_value(value)
    api.expect(prompt).to_have_value("a red boat")
    api.expect(page.get_by_label("Columns: values").and_(page.locator("textarea"))).to_have_value("0.25, 0.75")
    api.expect(page.locator(".axes .token:visible")).to_have_text(["red"])
    api.expect(page.locator(".mix .token:visible")).to_have_text(["green", "red"])
    page.get_by_role("button", name="Scores").click()
    api.expect(page.get_by_label("Subject at hand", exact=True)).to_have_value(SAMPLE)
