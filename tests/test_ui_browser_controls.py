"""More of the Create tab in a real browser: bases, a source picture, seeds, triggers, dials of domains."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from diffusion_adapters import compose_adapters, load_adapter, save_adapter
from diffusion_adapters.cli.common import load_base
from tests.browser import GALLERY, served
from tests.test_ui_browser_create import generate, ready, set_number, take_up
from tests.tiny import save_pipeline
from ui.recipe import KEY

DOMAIN = "photograph_of_large_rooms"


@pytest.fixture(scope="module")
def app_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with the embedded base and the folder `tiny`, and with `red`, new and with a thumbnail, and `both`."""
    library = tmp_path_factory.mktemp("library")
    pipe = load_base(None)
    for name in ("red", "green"):
        load_adapter(pipe, GALLERY / f"{name}.safetensors", name)
    compose_adapters(pipe, "both", {"red": "red", DOMAIN: "green"})
    save_adapter(pipe, "both", library / "both.safetensors")
    newest = shutil.copy(GALLERY / "red.safetensors", library)
    os.utime(newest, (time.time() + 10,) * 2)
    Image.new("RGB", (60, 40), "red").save(library / "red.preview.png")
    tiny = save_pipeline(tmp_path_factory.mktemp("bases") / "tiny")
    with served(library=library, bases=[None, tiny]) as url:
        yield url


def recipe(picture: Image.Image) -> dict[str, Any]:
    return json.loads(picture.info[KEY])


def ready_without_previews(open_page: Callable[..., Any]) -> Any:
    page = ready(open_page)
    page.get_by_label("Live preview").uncheck()
    return page


def wait_for_value(page: Any, control: Any, accept: Callable[[str], bool]) -> str:
    """The value of a control, once it is accepted."""
    for _ in range(200):
        if accept(value := control.input_value()):
            return value
        page.wait_for_timeout(50)
    raise AssertionError(f"it stays {value!r}")


def test_bases_of_the_start_can_be_chosen_and_no_others_by_mistake(open_page: Callable[..., Any]) -> None:
    page = ready_without_previews(open_page)
    own = generate(page)
    page.get_by_role("button", name="Base, sampler, size").click()
    base = page.get_by_label("Base", exact=True)
    width = page.get_by_label("number input for Width")
    base.fill("/nowhere/missing")
    base.press("Enter")
    missing = page.get_by_text("base missing: no such folder, and not a Hub id like 'owner/name'")
    missing.first.wait_for()
    wait_for_value(page, base, "pocket".__eq__)
    assert missing.count() == 1
    page.locator(".toast-body").get_by_label("Close").click()  # else what comes next goes with it
    assert np.array_equal(generate(page), own)

    set_number(page, "Width", 64)
    page.on("response", lambda answer: answer.status >= 400 and refused.append(answer.text()))
    refused: list[str] = []
    base.click()
    page.get_by_role("option", name="tiny").click()
    away = page.get_by_text("put away, as made for another base: red")
    away.first.wait_for()
    wait_for_value(page, width, "16".__eq__)
    page.wait_for_timeout(1000)  # for what would be told once more
    assert (away.count(), page.locator(".toast-body.error").count(), refused) == (1, 0, [])
    other = generate(page)
    assert (own.size, recipe(own)["request"]["base"]) == ((48, 48), "pocket")
    assert (other.size, recipe(other)["request"]["base"], recipe(other)["adapters"]) == ((16, 16), "tiny", {})


def test_a_source_picture_the_seed_and_a_trigger(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = ready_without_previews(open_page)
    seed = page.get_by_label("Seed", exact=True)
    first = generate(page)
    assert str(recipe(first)["request"]["seed"]) == seed.input_value()
    page.get_by_role("button", name="Random", exact=True).click()
    rolled = wait_for_value(page, seed, lambda value: value != str(recipe(first)["request"]["seed"]))
    second = generate(page)
    assert str(recipe(second)["request"]["seed"]) == rolled
    assert not np.array_equal(second, first)
    assert np.array_equal(generate(page), second)  # locked
    page.get_by_label("Lock", exact=True).uncheck()
    free = generate(page)
    drawn = wait_for_value(page, seed, lambda value: value != rolled)
    assert str(recipe(free)["request"]["seed"]) == drawn
    page.get_by_role("button", name="Random", exact=True).click()
    wait_for_value(page, seed, lambda value: value != drawn)
    page.get_by_role("button", name="Reuse the picture's").click()
    wait_for_value(page, seed, drawn.__eq__)
    assert page.get_by_label("Lock", exact=True).is_checked()

    prompt = page.locator(".ask textarea")
    trigger = page.locator(".card button.trigger")
    word = trigger.inner_text().removeprefix("+ ")
    prompt.fill("under the sea")
    trigger.click()
    wait_for_value(page, prompt, f"{word}, under the sea".__eq__)
    prompt.fill("")
    trigger.click()
    wait_for_value(page, prompt, word.__eq__)
    plain = generate(page)
    assert recipe(plain)["request"]["prompt"] == word

    source = tmp_path / "source.png"
    Image.new("RGB", (40, 30), (0, 0, 255)).save(source)
    page.get_by_role("button", name="Draw from a picture").click()
    page.locator("input[type=file][accept*=image]:not(.region *)").last.set_input_files(source)
    page.get_by_role("button", name="Remove Image").first.wait_for()
    set_number(page, "Strength", 0.5)
    drawn_from = generate(page)
    assert not np.array_equal(drawn_from, plain)
    assert "image" in recipe(drawn_from)
    blue, red = np.asarray(drawn_from)[..., 2].mean(), np.asarray(drawn_from)[..., 0].mean()
    assert blue - red > np.asarray(plain)[..., 2].mean() - np.asarray(plain)[..., 0].mean()


def test_a_hybrid_has_a_dial_for_each_domain(open_page: Callable[..., Any]) -> None:
    page = ready_without_previews(open_page)
    page.get_by_label("red", exact=True).uncheck()
    without = generate(page)
    assert recipe(without)["adapters"] == {}
    take_up(page, "both")
    whole = generate(page)
    assert recipe(whole)["adapters"] == {"both": {}}
    assert page.get_by_label("number input for Domain red").input_value() == "1"
    set_number(page, "Domain red", 0)
    green = generate(page)
    assert recipe(green)["adapters"] == {"both": {"domains": {"red": 0.0}}}
    assert not np.array_equal(green, whole)
    assert not np.array_equal(green, without)
    set_number(page, f"Domain {DOMAIN}", 0)
    assert np.array_equal(generate(page), without)


def test_gains_a_tag_a_thumbnail_and_what_to_keep_out(open_page: Callable[..., Any]) -> None:
    page = ready_without_previews(open_page)
    page.wait_for_function("document.querySelector('.card .facts img').naturalWidth > 0")
    seen = [plain := generate(page)]
    page.get_by_text("When and where red acts").click()
    for label, gain in (("Fine", 0), ("mid_block", 2), ("To", 0.5)):
        set_number(page, label, gain)
        seen.append(generate(page))
    assert recipe(seen[-1])["adapters"] == {
        "red": {"bands": [1.0, 1.0, 0.0], "scopes": {"mid_block": 2.0}, "end": 0.5}
    }  # fmt: skip
    for label, gain in (("Fine", 1), ("mid_block", 1), ("To", 1)):
        set_number(page, label, gain)
    assert np.array_equal(generate(page), plain)
    set_number(page, "Weight of red", 0.8)
    seen.append(generate(page))
    page.get_by_label("red", exact=True).uncheck()
    prompt = page.locator(".ask textarea")
    words = prompt.input_value()
    prompt.fill(f"{words} <lora:red:0.8>")
    assert np.array_equal(generate(page), seen[-1])
    prompt.fill(words)
    seen.append(generate(page))
    page.get_by_label("Negative prompt").fill("a red ball")
    seen.append(generate(page))
    assert recipe(seen[-1])["request"]["negative_prompt"] == "a red ball"
    assert len({picture.tobytes() for picture in seen}) == len(seen) == 7
