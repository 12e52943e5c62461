"""The Train tab in a real browser: from pictures to an adapter in the Create tab."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from tests.browser import GALLERY, Visitor
from tests.trainings import SUBJECT, Bases
from train import checkpoint, records
from ui.check import BUSY
from ui.choices import Choices
from ui.process import Process, _start_of
from ui.run import Run
from ui.runs import Runs

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


def paint(page: Any, x: float, y: float) -> None:
    """A stroke to the right, from a place in the editor as parts of its width and height."""
    canvas = page.locator(".image-container canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] * x, box["y"] + box["height"] * y
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=5)
    page.mouse.up()


def look_at(page: Any, run: str) -> None:
    """Choose a run, or (new)."""
    page.get_by_label("Run", exact=True).first.click()
    page.get_by_role("option", name=re.compile(f"^{re.escape(run)}")).click()


@pytest.fixture(scope="module")
def shared(visitor: Visitor) -> Any:
    """The tab."""
    return visitor.open(tab="Train")


@pytest.fixture
def page(shared: Any, visitor: Visitor, runs_folder: Path) -> Iterator[Any]:
    """The tab with no run chosen."""
    yield shared
    look_at(shared, "(new)")
    visitor.check()


def test_pictures_captions_and_masks_are_edited_in_place(page: Any, runs_folder: Path, tmp_path: Path) -> None:
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
    paint(page, 0.5, 0.5)
    page.get_by_role("button", name="Keep the mask").click()
    page.get_by_text("masked").first.wait_for()
    with Image.open(folder / "01.mask.png") as mask, Image.open(folder / "01.png") as picture:
        assert mask.size == picture.size
        assert mask.getextrema() == (0, 255)
    first = (folder / "01.mask.png").read_bytes()
    page.reload()  # which opens the tab that was open
    page.get_by_text("has 2 pictures and was not started yet").wait_for()
    assert page.title() == "Blend Studio · diffusion-adapters"
    page.get_by_text("a [trigger] on grass").first.wait_for()
    drawn: list[Any] = []  # the picture, and what is painted on it
    page.on("response", lambda answer: drawn.append(answer) if answer.url.endswith("image.png") else None)
    drawn.clear()
    page.locator(".data img").nth(1).click()
    page.locator("code").filter(has_text="01.png").wait_for()
    until = time.monotonic() + 60
    while len(drawn) < 2:
        assert time.monotonic() < until
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)  # the editor tells nobody when it has drawn them
    paint(page, 0.2, 0.2)
    page.get_by_role("button", name="Keep the mask").click()
    until = time.monotonic() + 60
    while (folder / "01.mask.png").read_bytes() == first:
        assert time.monotonic() < until
        page.wait_for_timeout(100)
    before, after = (
        np.asarray(Image.open(io.BytesIO(data))) for data in (first, (folder / "01.mask.png").read_bytes())
    )
    assert (after[before > 200] > 150).all()
    assert (after > 200).sum() > 1.3 * (before > 200).sum()
    page.get_by_role("button", name="Remove the mask").click()
    while (folder / "01.mask.png").exists():
        assert time.monotonic() < until + 60
        page.wait_for_timeout(100)


def test_a_check_says_what_is_refused_and_why(page: Any, runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check, report = page.get_by_role("button", name="Check", exact=True), page.locator(".report textarea")
    fill(page, "Name", "checked")
    said = "words => document.querySelector('.report textarea')?.value.endsWith(words)"
    check.click()
    page.wait_for_function(said, arg="Refused: there are no pictures yet: drop some of the subject")
    drop(page, *SUBJECT[:2])
    page.get_by_text("has 2 pictures and was not started yet").wait_for()
    page.get_by_role("button", name="Delete the run").wait_for()
    assert not page.get_by_role("button", name="Resume").is_visible()
    (runs_folder / "checked" / "data" / "notes.doc").write_text("no picture")
    monkeypatch.setattr(Runs, "busy", True)
    check.click()
    page.wait_for_function(said, arg=BUSY)
    assert "2 pictures at 48 x 48 pixels" in report.input_value()
    assert "not used notes.doc: not an image that Pillow can read" in report.input_value()
    for fold, switch, words in (
        ("Data", "Masked loss", "has a mask"), ("Quality pilot", "Pilot", "Refused: Pilot scores pictures"),
    ):  # fmt: skip
        unfold(page, fold)
        if switch == "Pilot":
            unfold(page, "Results")
            fill(page, "Num validation images", "0")
        page.get_by_label(switch, exact=True).check()
        check.click()
        page.wait_for_function(said.replace("endsWith", "includes"), arg=words)
        page.get_by_label(switch, exact=True).uncheck()
    fill(page, "Steps", "77")
    family = page.get_by_label("Family", exact=True).and_(page.locator("input:visible"))
    family.click()  # a look at the list leaves all as it is; another family begins anew
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)
    assert field(page, "Steps").input_value() == "77"
    for other in ("loha", "lora"):
        family.click()
        page.get_by_role("option", name=other, exact=True).click()
        page.wait_for_function("box => box.value == '200'", arg=field(page, "Steps").element_handle())
        fill(page, "Steps", "77")
    fill(page, "Resolution", "47")
    page.get_by_role("button", name="Train", exact=True).click()
    page.locator(".toast-body").filter(has_text="Resolution 47 must be a multiple of").wait_for()
    fill(page, "Resolution", "0")
    check.click()
    page.wait_for_function(said, arg="Refused: Resolution must be at least 8, got 0")
    assert page.locator("[data-testid=status-tracker] .error:visible").count() == 0
    assert not (runs_folder / "checked" / "run.toml").exists()


@pytest.fixture
def paused(runs_folder: Path) -> Run:
    """A run with a pilot, as it is when it was stopped at step 4 of 10."""
    choices = Choices(Bases())  # type: ignore[arg-type]
    run = Runs(runs_folder).create("paused")
    run.pictures.add(SUBJECT[:2])
    values = {**choices.start("pocket", "lora"), "pilot": True, "max_train_steps": 10, "rank": 3}
    run.settings.write_text(choices.toml(values, run.pictures.path, run.folder))
    now = time.time()
    lines = [json.dumps({"step": step, "loss": 1 / step, "time": now - 10 + step}) for step in range(1, 5)]
    (run.folder / records.FILE).write_text("\n".join(lines))
    (run.folder / f"{checkpoint.PREFIX}4").mkdir()
    rows = [
        {"step": step, "subject_fidelity": 0.5 + step / 10, "prompt_fidelity": 0.7, "drift": 0.1} for step in (2, 4)
    ]
    (run.folder / "pilot.json").write_text(json.dumps({"rows": rows, "pick": 4}))
    run.note(launched=now - 20, pid=2**22 + 1, started=0.0, ended=now, total=10, asked="stop")
    shutil.copy(GALLERY / "red.safetensors", run.result)
    return run


def test_a_stopped_run_is_looked_at_and_resumed(
    open_page: Callable[..., Any], paused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(tab="Train")
    look_at(page, "paused, stopped")
    page.get_by_text(re.compile(r"paused: stopped · step 4 of 10 · loss 0\.25")).wait_for()
    for text in ("subject fidelity", "0.900", "●"):
        page.get_by_text(text, exact=True).locator("visible=true").first.wait_for()
    assert field(page, "Steps").input_value() == "10"
    assert field(page, "Up to step").input_value() == "10"
    given: list[str] = []

    def sleep(arguments: list[str], log: Path) -> Process:
        given.extend(arguments)
        pid = subprocess.Popen(["sleep", "60"], start_new_session=True).pid
        return Process(pid, _start_of(pid) or 0.0)

    monkeypatch.setattr(Process, "launch", sleep)
    fill(page, "Up to step", "12")
    page.get_by_role("button", name="Resume").click()
    page.get_by_text(re.compile("paused: starting")).wait_for()
    assert given[2:] == ["--max_train_steps", "12", "--resume_from_checkpoint", "latest"]
    halt = page.get_by_role("button", name="Stop and save")
    halt.click()
    page.get_by_text(re.compile("paused: (stopping|stopped)")).wait_for()


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
    step = len(records.read(runs_folder / "blue"))
    assert 3 <= step < 4000
    fill(page, "Up to step", str(step + 2))
    page.get_by_role("button", name="Resume").click()
    page.get_by_text(re.compile(f"blue: done · step {step + 2} of {step + 2}")).wait_for(timeout=LONG)
    page.get_by_role("button", name="Try it in Create").click()
    page.get_by_label("number input for Weight of blue", exact=True).wait_for()
    assert field(page, "Prompt").input_value() == "a photo of sks creature"
    assert str(runs_folder) not in page.content()
