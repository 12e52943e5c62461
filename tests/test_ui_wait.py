"""What a visitor waits for: the app, the first preview, the next one. `pytest tests/test_ui_wait.py -m slow -s`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from tests.browser import GALLERY, WAIT

CHANGES = 3


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, float]]:
    """The app in a process of its own: its address, and seconds from the command to it."""
    command = [sys.executable, "-m", "ui", "--adapters", str(GALLERY), "--library", str(tmp_path)]
    there = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=there, cwd=Path(__file__).parents[1])
    try:
        assert app.stdout is not None
        found = next(filter(None, (re.search(r"http://\S+", line) for line in app.stdout)))
        yield found[0], time.perf_counter() - start
    finally:
        app.terminate()
        app.wait()


@pytest.mark.slow
def test_what_a_visitor_waits_for(browser: Any, served: tuple[str, float]) -> None:
    url, ready = served
    page = browser.new_page()
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.get_by_text("Preview of 6 steps").wait_for()
    large = page.locator(".large:visible img").first

    def changed(act: Any) -> float:
        before, start = large.get_attribute("src"), time.perf_counter()
        act()
        page.wait_for_function("old => document.querySelector('.large img').src != old", arg=before)
        return time.perf_counter() - start

    weight = page.get_by_label(re.compile("^number input for Weight of")).first

    def slide(value: float) -> None:
        weight.fill(str(value))
        weight.press("Tab")

    previews = [changed(lambda value=value: slide(value / 4)) for value in range(CHANGES)]
    full = changed(lambda: page.get_by_role("button", name="Generate").click())
    page.close()
    print(
        f"ready {ready:.1f} s; slider to preview {', '.join(f'{seconds:.2f}' for seconds in previews)} s; "
        f"click to first sight of the picture {full:.2f} s"
    )
    assert ready < 60
