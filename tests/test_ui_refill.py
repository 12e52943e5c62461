"""What stands in the controls of Compare after a reload, or when a sheet or a picture is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")

import gradio as gr

from tests.test_ui_compare import ASKED, axis, filled
from tests.test_ui_recipe import saved
from ui.bases import Base
from ui.common import App
from ui.grid import KEY, Plan, read_either
from ui.library import Library
from ui.plans import Plans
from ui.recipe import KEY as PICTURE
from ui.recipe import Recipe
from ui.refill import Refill
from ui.request import Dial, Request
from ui.studio import Studio


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """`red`, `green`, and a run with a checkpoint of each."""
    return Library([filled(tmp_path_factory.mktemp("library"))])


@pytest.fixture(scope="module")
def refill(library: Library) -> Refill:
    """The controls on a page of their own."""
    app = App(Studio([Base.of(None)], library), library)
    with gr.Blocks():
        plans = Plans(app)
        plans.ask()
        plans.more()
        return Refill(app, plans)


def first(refill: Refill) -> dict[str, Any]:
    """What stands in the controls of a page that was just opened."""
    return {name: part.value for name, part in refill.parts.items()}


def values(updates: dict[str, Any]) -> dict[str, Any]:
    return {name: update["value"] if isinstance(update, dict) else update for name, update in updates.items()}


def reloaded(refill: Refill, kept: Any) -> dict[str, Any]:
    """What stands in the controls after a reload."""
    found = refill.reload(kept, *first(refill).values())
    assert found.pop(refill.filled)
    return values(refill.named(found.values()))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages on the page."""
    found: list[str] = []
    monkeypatch.setattr(gr, "Warning", found.append)
    return found


def test_a_sheet_given_back_fills_the_controls(refill: Refill, tmp_path: Path) -> None:
    request = Request.from_page({**ASKED, "base": "pocket", "negative_prompt": "fog"})
    for plan in (
        Plan(request, axis("weight", "0 to 1 in 3", "red"), axis("prompt", "a\nb, c"), ("red", "green"), weight=-1.5),
        Plan(request, axis("checkpoint", ["20", "10"], "cat"), None, ("red",), weight=0.5),
        Plan(request, axis("adapter", ["", "green"]), axis("steps", "1, 2")),
        Plan.of_blend(request, "green", "red", "0, 1", "0.5"),
    ):
        path = saved(tmp_path / "sheet.png", plan.as_dict(), KEY)
        back, _ = refill.plans.read([*values(refill.show(read_either(path), first(refill))).values(), None])
        assert (back.x, back.y, back.request, back.blend) == (plan.x, plan.y, plan.request, plan.blend)
        assert set(back.adapters) == set(plan.adapters)
        assert back.weight == plan.weight
    with pytest.raises(ValueError, match="cannot stand on an axis"):
        Plan.from_dict({**plan.as_dict(), "x": {"kind": "prompt", "values": [{"path": "/etc"}]}})


def test_a_picture_of_create_gives_what_compare_has_controls_for(
    refill: Refill, tmp_path: Path, told: list[str]
) -> None:
    request = Request(prompt="a cat", seed=7, steps=9, guidance_scale=3.5, width=48, height=48, sampler="DDIM")
    given = {**first(refill), "x_kind": "seed", "x_text": "1, 2"}
    path = saved(tmp_path / "a.png", Recipe(request, {"red": Dial(weight=0.5)}).as_dict(), PICTURE)
    shown = values(refill.show(read_either(path), given))
    assert told == []
    wanted = {"prompt": "a cat", "seed": 7, "steps": 9, "guidance_scale": 3.5, "adapters": ["red"], "weight": 0.5}
    assert {name: shown[name] for name in wanted} == wanted
    assert (shown["x_kind"], shown["x_text"]) == ("seed", "1, 2")
    mix = {"green": Dial(weight=0.5, start=0.5), "red": Dial(), "gone": Dial()}
    recipe = Recipe(Request(width=64, base="elsewhere"), mix, image=Image.new("RGB", (4, 4)))
    shown = values(refill.show(recipe, given))
    assert (shown["adapters"], shown["weight"], shown["base"]) == (["green", "red"], 0.5, "pocket")
    for words in (
        "no control for width", "start of an adapter", "one weight; 0.5 was taken, that of 'green'",
        "draws from no picture", "no 'gone' here", "base 'elsewhere', which is not here",
    ):  # fmt: skip
        assert sum(words in one for one in told) == 1, words
    assert len(told) == 6


def test_what_the_browser_kept_is_put_back_as_far_as_it_is_there(refill: Refill) -> None:
    given = first(refill)
    fresh = reloaded(refill, {})
    assert (fresh["adapters"], fresh["prompt"]) == (["cat checkpoint-20"], "a photo of zwx creature")
    assert (fresh["first"], fresh["second"]) == ("cat checkpoint-10", "cat checkpoint-20")
    kept = {
        **given, "mode": "Blend map", "x_kind": "checkpoint", "x_of": "cat", "x_names": ["20", "99"], "y_kind": "",
        "x_meant": "checkpoint", "y_meant": "",
        "x_text": "0, half typed", "adapters": ["gone"], "first": "red", "second": "gone", "subject": "nobody",
    }  # fmt: skip
    back = reloaded(refill, kept)
    assert back == {
        **kept,
        "x_names": ["20"],
        "y_of": None,
        "adapters": [],
        "second": "cat checkpoint-10",
        "subject": "(none)",
    }
    for other in ({"mode": "Grid"}, {**kept, "weight": "much"}, {**kept, "x_kind": []}, ["x"], None):
        assert reloaded(refill, other) == fresh
    assert refill.keep(False, *given.values()) == gr.skip()
    assert refill.keep(True, *kept.values()) == kept


def test_a_look_at_the_library_keeps_what_is_chosen(refill: Refill) -> None:
    given = {**first(refill), "x_kind": "checkpoint", "x_of": "cat", "x_names": ["20"], "adapters": ["red"]}
    found = refill.refresh(*given.values())
    assert found[refill.parts["x_names"]]["value"] == ["20"]
    assert found[refill.parts["adapters"]]["value"] == ["red"]
    assert not {refill.parts[name] for name in ("prompt", "mode", "alphas")} & set(found)
    assert refill.refresh(*{**given, "adapters": []}.values())[refill.parts["adapters"]]["value"] == []
