"""The Train tab in a real browser: from pictures to an adapter in the Create tab."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")


from train import records
from train.data.options import SAMPLE_SUBJECT

SUBJECT = sorted(SAMPLE_SUBJECT.glob("*.png"))
LONG = 180_000
"""Milliseconds in which a training begins, or ends, on a busy computer."""


def field(page: Any, label: str) -> Any:
    """The input of a control, whose label holds its help as well."""
    title = page.get_by_text(label, exact=True)
    return page.locator("label:visible").filter(has=title).locator("input, textarea").first


def fill(page: Any, label: str, value: str) -> None:
    """Type into a control and leave it."""
    box = field(page, label)
    box.fill(value)
    box.press("Tab")


def unfold(page: Any, title: str) -> None:
    page.locator("button.label-wrap:visible").filter(has_text=re.compile(f"^{title}")).click()


def drop(page: Any, *files: Path) -> None:
    page.locator(".drop input[type=file]").set_input_files([str(file) for file in files])


def test_pictures_captions_and_masks_are_edited_in_place(
    open_page: Callable[..., Any], runs_folder: Path, tmp_path: Path
) -> None:
    page = open_page(tab="Train")
    fill(page, "Name", "My cat!")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    caption = tmp_path / "00.txt"
    caption.write_text("a blue one")
    drop(page, *SUBJECT[:2], broken, caption)
    page.get_by_text("not an image that Pillow can read").wait_for()
    page.locator(".data img").nth(1).wait_for()
    folder = runs_folder / "My-cat" / "data"
    assert sorted(path.name for path in folder.iterdir()) == ["00.png", "00.txt", "01.png"]
    page.locator(".data img").nth(1).click()
    fill(page, "Caption", "a [trigger] on grass")
    page.get_by_text("a [trigger] on grass").first.wait_for()
    canvas = page.locator(".image-container canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 40, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Keep the mask").click()
    page.get_by_text("masked").first.wait_for()
    with Image.open(folder / "01.mask.png") as mask, Image.open(folder / "01.png") as picture:
        assert mask.size == picture.size
        assert mask.getextrema() == (0, 255)
    page.reload()
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_text("has 2 pictures and was not started yet").wait_for()
    page.locator(".data img").nth(1).wait_for()
    page.get_by_text("a [trigger] on grass").first.wait_for()


@pytest.mark.slow
def test_a_run_from_pictures_to_the_create_tab(open_page: Callable[..., Any], runs_folder: Path) -> None:
    page = open_page(tab="Train")
    fill(page, "Name", "blue")
    page.get_by_role("button", name=re.compile("sample subject")).click()
    page.get_by_text("has 5 pictures").wait_for()
    fill(page, "Steps", "4000")
    fill(page, "Steps between samples", "3")
    fill(page, "Validation prompts", "a photo of sks creature")
    unfold(page, "Results")
    fill(page, "Num validation images", "1")
    fill(page, "Num inference steps", "2")
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text(re.compile(r"blue: (starting|training)")).wait_for()
    page.get_by_text(re.compile(r"step ([3-9]|\d\d+) of 4000")).wait_for(timeout=LONG)
    page.locator(".samples img").first.wait_for()
    page.reload()
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_text(re.compile(r"blue: training · step \d+ of 4000 · loss 0\.\d+ · \d:\d\d:\d\d left")).wait_for()
    page.locator(".vega-embed canvas, .vega-embed svg").first.wait_for()
    assert field(page, "Steps").input_value() == "4000"
    page.get_by_role("button", name="Stop and save").click()
    page.get_by_text(re.compile("blue: stopped")).wait_for(timeout=LONG)
    page.get_by_text("before and after").wait_for()
    assert 3 <= len(records.read(runs_folder / "blue")) < 4000
    page.get_by_role("button", name="Try it in Create").click()
    page.get_by_label("number input for Weight of blue", exact=True).wait_for()
    assert field(page, "Prompt").input_value() == "a photo of sks creature"
    assert str(runs_folder) not in page.content()
