"""The Train tab in a real browser: from pictures to an adapter in the Create tab."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import Client, handle_file

from tests.trainings import end
from train import records
from train.data.options import SAMPLE_SUBJECT
from ui.runs import Runs

SUBJECT = sorted(SAMPLE_SUBJECT.glob("*.png"))
LONG = 180_000
"""Milliseconds in which a training begins, or ends, on a busy computer."""


@pytest.fixture
def runs(library_folder: Path) -> Iterator[Path]:
    """The folder of the app's runs; what is new in it goes when the test ends."""
    before = set(library_folder.iterdir())
    yield library_folder
    end(Runs(library_folder))
    for path in set(library_folder.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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
    open_page: Callable[..., Any], runs: Path, tmp_path: Path
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
    folder = runs / "My-cat" / "data"
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
def test_a_run_from_pictures_to_the_create_tab(open_page: Callable[..., Any], runs: Path) -> None:
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
    assert 3 <= len(records.read(runs / "blue")) < 4000
    page.get_by_role("button", name="Try it in Create").click()
    page.get_by_label("number input for Weight of blue", exact=True).wait_for()
    assert field(page, "Prompt").input_value() == "a photo of sks creature"
    assert str(runs) not in page.content()


@pytest.mark.slow
def test_programs_do_the_same(app_url: str, runs: Path) -> None:
    client = Client(app_url, verbose=False, analytics_enabled=False)
    options = client.predict(api_name="/training_options")
    assert not [name for name in client.view_api(return_format="dict")["named_endpoints"] if name[-1].isdigit()]
    assert options["adapter"] == "lora"
    files = [handle_file(path) for path in (*SUBJECT[:2], Path(__file__))]
    settings = {"max_train_steps": 2, "num_validation_images": 0, "rank": 2}
    made = client.predict("by program", files, settings, api_name="/train")
    assert list(made["refused"]) == [Path(__file__).name]
    assert (made["name"], made["pictures"]) == ("by-program", 2)
    until = time.monotonic() + 120
    while (now := client.predict("by-program", api_name="/run"))["state"] not in ("done", "failed", "killed"):
        assert time.monotonic() < until
        time.sleep(0.5)
    assert (now["state"], [record["step"] for record in now["records"]]) == ("done", [1.0, 2.0])
    assert now["settings"]["rank"] == 2
    assert "by-program" in {entry["name"] for entry in client.predict("", api_name="/adapters")}
    client.predict("by-program", api_name="/delete_run")
    assert not (runs / "by-program").exists()


def test_programs_are_refused_in_words(app_url: str, runs: Path) -> None:
    client = Client(app_url, verbose=False, analytics_enabled=False)
    files = [handle_file(SUBJECT[0])]
    for endpoint, arguments, words in (
        ("/train", ("x", files, {"output_dir": "/tmp"}), "cannot be set here"),
        ("/train", ("x", files, {"rank": 0}), "rank must be at least 1"),
        ("/train", ("x", [], {}), "has no pictures"),
        ("/run", ("../x",), "there is no run"),
        ("/stop", ("nobody", False), "there is no run"),
        ("/resume", ("nobody", None), "there is no run"),
    ):
        with pytest.raises(Exception, match=words) as caught:
            client.predict(*arguments, api_name=endpoint)
        assert str(runs) not in str(caught.value)
    assert client.predict(api_name="/runs") == []
