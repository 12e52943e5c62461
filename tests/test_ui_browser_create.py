"""The Create tab in a real browser."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import Client

from tests.browser import WAIT
from ui.recipe import KEY
from ui.request import decode_image

STEPS = 4


def picture(page: Any) -> Image.Image:
    """What stands in the large view, from its own file."""
    source = page.locator(".large:visible img").first.get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(source).body()))


def generate(page: Any) -> Image.Image:
    """Press the button and wait for what comes of it."""
    count = page.locator(".pictures img").count()
    page.get_by_role("button", name="Generate").click()
    page.locator(".pictures img").nth(count).wait_for()
    page.get_by_text("Done.").wait_for()
    return picture(page)


def wait_until(true: Callable[[], bool]) -> None:
    """Look again and again."""
    end = time.monotonic() + WAIT / 1000
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def set_number(page: Any, label: str, value: float) -> None:
    """Type into the number of a slider."""
    box = page.get_by_label(f"number input for {label}", exact=True)
    box.fill(str(value))
    box.press("Tab")


def take_up(page: Any, name: str) -> None:
    """Give an adapter a card."""
    page.get_by_label("Adapters", exact=True).click()
    page.get_by_role("option", name=name).click()
    page.keyboard.press("Escape")
    page.get_by_label(f"number input for Weight of {name}").wait_for()


def paint(page: Any) -> None:
    """A stroke down the middle of the editor of a region, until the preview has taken it in."""
    canvas = page.locator(".region canvas").first
    canvas.wait_for()
    before = page.locator(".large:visible img").first.get_attribute("src")
    for _ in range(10):  # an editor that still loads swallows what is done to it
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.3 * box["height"]
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x, y + 100, steps=5)
        page.mouse.up()
        for _ in range(30):
            page.wait_for_timeout(100)
            if page.locator(".large:visible img").first.get_attribute("src") != before:
                return
    raise AssertionError("no stroke came through")


def ready(open_page: Callable[..., Any], **settings: Any) -> Any:
    """A page with the first card, its first preview, and few steps."""
    page = open_page(**settings)
    page.get_by_text("Preview of 6 steps").wait_for()
    set_number(page, "Steps", STEPS)
    return page


def test_two_adapters_their_weights_and_a_reload(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = ready(open_page)
    first = generate(page)
    recipe = json.loads(first.info[KEY])
    other = {"red", "green"} - set(recipe["adapters"])
    assert recipe["request"]["steps"] == STEPS
    take_up(page, other.pop())
    both = generate(page)
    assert not np.array_equal(first, both)
    set_number(page, "Weight of red", 0.5)
    page.get_by_text(re.compile("Preview of 4 steps")).wait_for()
    weighed = generate(page)
    assert not np.array_equal(both, weighed)
    assert json.loads(weighed.info[KEY])["adapters"]["red"] == {"weight": 0.5}
    weighed_file = tmp_path / "picture.png"
    source = page.locator(".large:visible img").first.get_attribute("src")
    weighed_file.write_bytes(page.request.get(source).body())

    page.reload()
    page.get_by_label("number input for Weight of red").wait_for()
    assert page.get_by_label("number input for Weight of red").input_value() == "0.5"
    assert page.get_by_label("number input for Steps").input_value() == str(STEPS)
    assert page.locator(".pictures img").count() == 3
    assert np.array_equal(generate(page), weighed)

    page = ready(open_page)  # another visitor, with nothing of the first one's
    assert page.locator(".pictures img").count() == 0
    page.get_by_text("Take up a picture's recipe").click()
    page.locator("input[type=file][accept*=png]").last.set_input_files(weighed_file)
    page.get_by_text("The recipe was taken up.").wait_for()
    page.get_by_label("number input for Weight of red").wait_for()
    assert page.get_by_label("number input for Weight of red").input_value() == "0.5"
    assert np.array_equal(generate(page), weighed)


def test_a_painted_region(open_page: Callable[..., Any]) -> None:
    page = ready(open_page)
    whole = generate(page)
    name = next(iter(json.loads(whole.info[KEY])["adapters"]))
    page.get_by_text(f"When and where {name} acts").click()
    page.get_by_label("Only in a region").check()
    everywhere = page.get_by_text("Nothing is painted yet: it acts everywhere.")
    everywhere.wait_for()
    paint(page)
    everywhere.wait_for(state="hidden")
    region = generate(page)
    assert not np.array_equal(region, whole)
    mask = decode_image(json.loads(region.info[KEY])["adapters"][name]["mask"], "mask")
    painted = np.asarray(mask) > 128
    assert 0.02 < painted.mean() < 0.4
    assert painted[:, painted.shape[1] // 2].any()


def test_a_place_in_the_queue_a_stop_and_an_error(
    open_page: Callable[..., Any], hold: Callable[[int], Any], app_url: str
) -> None:
    page, held = ready(open_page), hold(0)
    others = [Client(app_url, verbose=False, analytics_enabled=False) for _ in range(2)]
    asked = {"prompt": "a red ball", "negative_prompt": "", "seed": 3, "steps": 2, "guidance_scale": 2.0}
    jobs = [others[0].submit(**asked, num_images=1, api_name="/generate")]
    assert held.begun.wait(WAIT / 1000)
    jobs.append(others[1].submit(**asked, num_images=1, api_name="/generate"))
    wait_until(lambda: jobs[1].status().rank is not None)
    page.get_by_role("button", name="Generate").click()
    page.get_by_text(re.compile("queue: 2/2")).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    held.let_go.set()
    assert all(len(job.result(WAIT / 1000)) == 1 for job in jobs)
    assert page.locator(".pictures img").count() == 0

    set_number(page, "Pictures", 8)
    held = hold(2)
    page.get_by_role("button", name="Generate").click()
    assert held.begun.wait(WAIT / 1000)
    page.get_by_text(re.compile(r"\d+/800 steps|\d+\.\d%")).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert held.stopped.wait(WAIT / 1000)
    page.locator(".pictures img").nth(1).wait_for()
    assert page.locator(".pictures img").count() == 2
    held.let_go.set()

    set_number(page, "Pictures", 1)
    page.locator(".ask textarea").fill("a creature <lora:nobody:1>")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("no adapter 'nobody' in the library").first.wait_for()
    page.locator(".ask textarea").fill("a creature <lora:red:0.5>")
    assert "<lora:red:0.5>" in generate(page).info[KEY]
