"""The Library tab in a real browser."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import GALLERY, Visitor

NAMES = ("red", "green")
SOUND = (GALLERY / "red.safetensors").read_bytes()


@pytest.fixture
def library(library_folder: Path) -> Iterator[Path]:
    """The library's own folder, put back afterwards."""
    yield library_folder
    for name in NAMES:
        own = library_folder / f"{name}.safetensors"
        own.write_bytes((GALLERY / own.name).read_bytes())
    for path in library_folder.iterdir():
        if path.is_file() and path.name not in [f"{name}.safetensors" for name in NAMES]:
            path.unlink()


@pytest.fixture(scope="module")
def shared(visitor: Visitor) -> Any:
    """The tab."""
    return visitor.open(tab="Library")


@pytest.fixture
def page(shared: Any, visitor: Visitor, library: Path) -> Iterator[Any]:
    """The tab as it is at first, but for what it says of an adapter."""
    shared.get_by_label("Search").fill("")
    shared.get_by_role("button", name="Look again").click()
    for name in NAMES:
        card(shared, name).wait_for()
    yield shared
    shared.set_viewport_size({"width": 1280, "height": 900})
    visitor.check()


def card(page: Any, name: str) -> Any:
    return page.locator(f"#shelf [data-pick='{name}']")


def choose(page: Any, name: str) -> None:
    """Look at an adapter, and at the other one before, as it may be shown already."""
    for each in sorted(NAMES, key=name.__eq__):
        card(page, each).click()
        shown(page, each)


def shown(page: Any, name: str) -> None:
    """Wait until what is said of the chosen one is here."""
    page.locator("#library-title").get_by_text(name, exact=True).wait_for()
    page.get_by_text("fits pocket: every layer would be applied").wait_for()


def send(page: Any, button: str, file: Any) -> None:
    """Upload a file by a button."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=button).click()
    chooser.value.set_files(file)


def stored(library: Path) -> set[Path]:
    """The adapter files in it, and in the two folders that it lies in."""
    return {path for folder in (library, *library.parents[:2]) for path in folder.glob("*.safetensors")}


def test_search_details_notes_and_thumbnail(page: Any, library: Path, tmp_path: Path) -> None:
    page.get_by_label("Search").fill("zwx wara")
    card(page, "red").wait_for(state="detached")
    card(page, "green").focus()
    page.keyboard.press("Enter")
    shown(page, "green")
    page.get_by_label("Notes").fill("for meadows")
    page.get_by_role("button", name="Save notes").click()
    page.get_by_text("Noted: green.").wait_for()
    assert json.loads((library / "green.json").read_text())["notes"] == "for meadows"
    Image.new("RGB", (60, 40), "green").save(tmp_path / "picture.png")
    send(page, "Set thumbnail", tmp_path / "picture.png")
    card(page, "green").locator("img").wait_for()
    assert (library / "green.preview.jpg").is_file()
    page.reload()
    page.get_by_role("tab", name="Library", exact=True).click()
    card(page, "green").locator("img").wait_for()
    card(page, "green").click()
    shown(page, "green")
    assert page.get_by_label("Notes").input_value() == "for meadows"


def test_what_came_meanwhile_is_there_when_the_tab_is_opened(page: Any, library: Path) -> None:
    page.get_by_role("tab", name="Compare", exact=True).click()
    (library / "meanwhile.safetensors").write_bytes(SOUND)
    page.get_by_role("tab", name="Library", exact=True).click()
    card(page, "meanwhile").wait_for()


HOSTILE = {
    "a pickle": (pickle.dumps({"a": 1}, 2), "a pickle can run code when read and is never loaded"),
    "a header of 2 GB": ((2**31).to_bytes(8, "little") + b'{"a":' + bytes(64), "its header claims 2147483648"),
    "a file of 21 MB": (SOUND + bytes(21 * 10**6), "exceed the maximum allowed size of 20"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_a_toast_and_is_not_kept(kind: str, page: Any, library: Path, tmp_path: Path) -> None:
    data, words = HOSTILE[kind]
    before = stored(library)
    (tmp_path / "evil.safetensors").write_bytes(data)
    send(page, "Upload an adapter", tmp_path / "evil.safetensors")
    toast = page.locator(".toast-body").filter(has_text=words)
    toast.wait_for()
    toast.get_by_label("Close").click()
    assert stored(library) == before
    choose(page, "red")  # it lives on


def test_a_sound_file_is_a_card_whatever_its_name(page: Any, library: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    before = stored(library)
    data = SOUND.replace(b"sks", b"zwy")
    sent = {"name": "../../new one.safetensors", "mimeType": "application/octet-stream", "buffer": data}
    send(page, "Upload an adapter", sent)
    card(page, "new one").wait_for()
    assert stored(library) == before | {library / "new one.safetensors"}
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_delete_asks_first_and_can_be_taken_back(page: Any, library: Path) -> None:
    choose(page, "red")
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


def test_a_merge_joins_the_library(page: Any, library: Path) -> None:
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
