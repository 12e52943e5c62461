"""Grids and blend maps of the app: what each cell is drawn from, how the sheet looks, and its scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import Client, handle_file

from tests.browser import GALLERY
from ui.app import build, open_page
from ui.axes import Axis, numbers
from ui.bases import Base
from ui.grid import Plan
from ui.library import Library
from ui.recipe import Recipe
from ui.request import Request
from ui.scores import SAMPLE
from ui.sheet import Result
from ui.studio import Studio

ASKED = {"prompt": "a photo of sks creature", "steps": 2, "guidance_scale": 2.0, "seed": 5}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Of its own folder."""
    folder = filled(tmp_path_factory.mktemp("library"))
    return Library([folder], folder)


def filled(folder: Path) -> Path:
    """A library folder with `red`, `green`, and a run with a checkpoint of each."""
    for name, step in (("red", 10), ("green", 20)):
        shutil.copy(GALLERY / f"{name}.safetensors", folder)
        (folder / "cat" / f"checkpoint-{step}").mkdir(parents=True)
        shutil.copy(GALLERY / f"{name}.safetensors", folder / "cat" / f"checkpoint-{step}" / "adapter.safetensors")
    return folder


@pytest.fixture(scope="module")
def served(library: Library) -> Iterator[tuple[Studio, Client]]:
    """The app, and a client of it."""
    studio = Studio([Base.of(None)], library)
    page = build(studio)
    _, url, _ = open_page(page, prevent_thread_lock=True)
    yield studio, Client(url, verbose=False, analytics_enabled=False)
    page.close()


def axis(kind: str, values: Any, of: str = "") -> Axis:
    return Axis.read({"kind": kind, "values": values, "of": of})


def mixes(plan: Plan, library: Library) -> list[dict[str, float]]:
    return [{n: d.weight for n, d in cell.mix.items()} for cell in plan.cells(library, Base.of(None))]


def test_axes_say_what_a_cell_is_drawn_from(library: Library) -> None:
    request = Request.from_page(ASKED)
    weights = axis("weight", "0 to 1 in 3")
    assert mixes(Plan(request, weights, None, ("red",)), library) == [{"red": w} for w in (0.0, 0.5, 1.0)]
    both = Plan(request, weights, axis("adapter", ["", "red", "green"]))
    assert mixes(both, library) == [
        {}, {}, {}, {"red": 0.0}, {"red": 0.5}, {"red": 1.0}, {"green": 0.0}, {"green": 0.5}, {"green": 1.0}
    ]  # fmt: skip
    one = Plan(request, axis("weight", "0.2", "red"), axis("weight", "0.3", "green"), ("red", "green"), weight=9.0)
    assert mixes(one, library) == [{"red": 0.2, "green": 0.3}]
    run = Plan(request, axis("checkpoint", "10\n20", "cat"), axis("seed", "7, 8"), weight=0.5)
    assert mixes(run, library) == [{"cat checkpoint-10": 0.5}, {"cat checkpoint-20": 0.5}] * 2
    seeds = [cell.request.seed for cell in run.cells(library, Base.of(None))]
    assert seeds == [7, 7, 8, 8]
    assert all(list(mix) in (["red"], ["green"]) for mix in mixes(Plan(request, axis("family", "wara")), library))
    other = Plan(request, axis("prompt", "a\nb, c"), axis("steps", [3, 4]))
    cells = other.cells(library, Base.of(None))
    assert [(cell.request.prompt, cell.request.steps) for cell in cells] == [
        ("a", 3), ("b, c", 3), ("a", 4), ("b, c", 4)
    ]  # fmt: skip
    assert cells[-1].label == "prompt b, c, steps 4"
    assert Plan.from_dict(json.loads(json.dumps(run.as_dict()))) == run


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (("colour", "1"), None, "unknown axis 'colour'"),
        (("seed", ""), None, "Seed has no values"),
        (("seed", "1, x"), None, "'1, x' is no list of numbers"),
        (("seed", "-1"), None, "seed must be at least 0"),
        (("seed", "1.5"), None, "seed must be int"),
        (("weight", "11"), None, "adapter 'red': weight must be at most 10"),
        (("adapter", ["blue"]), None, "no adapter 'blue' in the library"),
        (("adapter", ["red"]), ("family", ["wara"]), "both say which adapter"),
        (("seed", "1"), ("seed", "2"), "Seed is on both axes"),
        (("checkpoint", "30", "cat"), None, "no checkpoint 30; it has: 10, 20"),
        (("checkpoint", "30", "dog"), None, "no run 'dog' with checkpoints; there are: cat"),
        (("family", ["nothing"]), None, "no adapter of family 'nothing'"),
        (("seed", "0 to 100 in 101"), ("steps", "1, 2"), "202 cells; at most 144"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is(x: Any, y: Any, words: str, library: Library) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Plan(Request(), axis(*x), y and axis(*y), ("red",)).cells(library, Base.of(None))


def test_numbers_are_lists_or_ranges() -> None:
    assert numbers("-1 to 1 in 5", "x") == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert numbers("1; 2 ,3.5", "x") == [1, 2, 3.5]


def test_a_grid_is_the_pictures_that_each_cell_asks_for(served: tuple[Studio, Client], tmp_path: Path) -> None:
    studio, client = served
    x, y = {"kind": "weight", "values": "0, 1", "of": "red"}, {"kind": "seed", "values": [5, 6]}
    sheet, cells = client.predict(x, y, ASKED, ["red"], 1.0, SAMPLE, api_name="/grid")
    plan = Plan.read(Path(sheet))
    assert (plan.x.values, plan.y and plan.y.values, plan.adapters) == ((0, 1), (5, 6), ("red",))
    assert [cell["label"] for cell in cells][-1] == "weight of red 1, seed 6"
    for cell in cells:
        assert -1 <= cell["scores"]["subject_fidelity"] <= 1
        assert -1 <= cell["scores"]["prompt_fidelity"] <= 1
    assert cells[1]["scores"] != cells[0]["scores"]
    result = Result(plan, plan.cells(studio.library, studio.base()))
    for index, cell in enumerate(cells):
        recipe = Recipe.from_dict(cell["recipe"])
        ((_, picture),) = studio.make(recipe.request, recipe.adapters)
        result.pictures[index], result.scores[index] = picture, cell["scores"]
    with Image.open(sheet) as shown:
        np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), np.asarray(result.sheet()))
    assert len({picture.tobytes() for picture in result.pictures.values()}) == 4
    assert client.predict(handle_file(sheet), api_name="/recipe") == json.loads(json.dumps(plan.as_dict()))


def test_a_blend_map_is_of_two_adapters(served: tuple[Studio, Client]) -> None:
    _, cells = served[1].predict("red", "green", "0, 0.5", "0.25, 1", ASKED, "", api_name="/blend_map")
    mixed = [{n: own.get("weight", 1.0) for n, own in cell["recipe"]["adapters"].items()} for cell in cells]
    assert mixed == [{"red": a, "green": b} for b in (0.25, 1.0) for a in (0.0, 0.5)]
    with pytest.raises(Exception, match="of two different adapters"):
        served[1].predict("red", "red", "0", "1", ASKED, "", api_name="/blend_map")
    with pytest.raises(Exception, match="no subject '/etc'"):
        served[1].predict("red", "green", "0", "1", ASKED, "/etc", api_name="/blend_map")


def test_a_table_names_every_cell_and_escapes_what_users_typed(library: Library) -> None:
    plan = Plan(Request.from_page(ASKED), axis("prompt", "<script>\nb"), axis("seed", "1, 2"))
    result = Result(plan, plan.cells(library, Base.of(None)))
    result.pictures[3] = Image.new("RGB", (64, 64))
    table = result.table()
    assert "<script>" not in table
    assert table.count("not drawn yet") == 3
    assert "data-pick='3' aria-pressed='false' aria-label='prompt b, seed 2'" in table
    wide = Plan(Request(), axis("seed", list(range(100))))
    many = Result(wide, wide.cells(library, Base.of(None)), {0: Image.new("RGB", (2048, 2048))})
    assert max(many.sheet().size) <= 8192 + 2048
