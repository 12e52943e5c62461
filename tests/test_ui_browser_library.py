"""The Library tab in a real browser."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import GALLERY


@pytest.fixture
def library(library_folder: Path) -> Iterator[Path]:
    """The library's own folder, put back afterwards."""
    yield library_folder
    for name in ("red", "green"):
        own = library_folder / f"{name}.safetensors"
        own.write_bytes((GALLERY / own.name).read_bytes())
    for path in library_folder.iterdir():
        if path.is_file() and path.name not in ("red.safetensors", "green.safetensors"):
            path.unlink()


def card(page: Any, name: str) -> Any:
    return page.locator(f"#shelf [data-pick='{name}']")


def send(page: Any, button: str, path: Path) -> None:
    """Upload a file by a button."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=button).click()
    chooser.value.set_files(path)


def test_search_details_notes_and_thumbnail(open_page: Callable[..., Any], library: Path, tmp_path: Path) -> None:
    page = open_page(tab="Library")
    card(page, "red").wait_for()
    page.get_by_label("Search").fill("zwx wara")
    card(page, "red").wait_for(state="detached")
    card(page, "green").focus()
    page.keyboard.press("Enter")
    page.get_by_text("fits pocket: every layer would be applied").wait_for()
    page.get_by_label("Notes").fill("for meadows")
    page.get_by_role("button", name="Save notes").click()
    page.get_by_text("Noted: green.").wait_for()
    assert json.loads((library / "green.json").read_text())["notes"] == "for meadows"
    Image.new("RGB", (60, 40), "green").save(tmp_path / "picture.png")
    send(page, "Set thumbnail", tmp_path / "picture.png")
    card(page, "green").locator("img").wait_for()
    assert (library / "green.preview.jpg").is_file()


def test_a_hostile_file_is_a_toast_and_a_sound_one_a_card(
    open_page: Callable[..., Any], library: Path, tmp_path: Path
) -> None:
    page = open_page(tab="Library", width=390, height=844)
    card(page, "red").wait_for()
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps({"a": 1}, 2))
    send(page, "Upload an adapter", tmp_path / "evil.safetensors")
    page.get_by_text("a pickle can run code when read and is never loaded").wait_for()
    data = (GALLERY / "red.safetensors").read_bytes().replace(b"sks", b"zwy")
    (tmp_path / "new one.safetensors").write_bytes(data)
    send(page, "Upload an adapter", tmp_path / "new one.safetensors")
    card(page, "new one").wait_for()
    assert {path.name for path in library.glob("*.safetensors")} == {
        "red.safetensors", "green.safetensors", "new one.safetensors"
    }  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_delete_asks_first_and_can_be_taken_back(open_page: Callable[..., Any], library: Path) -> None:
    page = open_page(tab="Library")
    card(page, "red").click()
    page.get_by_text("every layer would be applied").wait_for()
    delete = page.get_by_role("button", name="Delete", exact=True)
    delete.click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Keep it").wait_for(state="hidden")
    assert (library / "red.safetensors").exists()
    delete.click()
    page.get_by_role("button", name="Yes, delete it").click()
    card(page, "red").wait_for(state="detached")
    assert not (library / "red.safetensors").exists()
    page.get_by_role("button", name="Deleted adapters").click()
    page.get_by_role("button", name="Bring back").click()
    card(page, "red").wait_for()
    assert (library / "red.safetensors").read_bytes() == (GALLERY / "red.safetensors").read_bytes()


def test_a_merge_joins_the_library(open_page: Callable[..., Any], library: Path) -> None:
    page = open_page(tab="Library")
    card(page, "red").wait_for()
    page.get_by_role("button", name="Merge, export, bake").click()
    for name in ("red", "green"):
        page.get_by_label("Adapters to put together").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.get_by_label("Their weights").fill("0.5, 1")
    page.get_by_label("Name of the result").fill("both")
    page.get_by_role("button", name="Merge into the library").click()
    page.get_by_text("both: rank").wait_for()
    card(page, "both").wait_for()
    assert (library / "both.safetensors").is_file()
