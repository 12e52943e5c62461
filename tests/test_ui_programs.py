"""What the app gives to programs: any base by its own limits, work that ends when cancelled, types, and plain words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")

import httpx
from gradio_client import Client

from tests.browser import Held, served
from tests.test_ui_compare import filled
from ui.recipe import Recipe

AXIS = {"kind": "seed", "values": [1, 2]}
LONG: dict[str, dict[str, Any]] = {
    "/generate": {"num_images": 8, "steps": 100},
    "/grid": {"x": AXIS},
    "/blend_map": {"first": "red", "second": "green", "request": {"base": "pocket"}},
}
"""What takes long, and what it is asked for."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def flow(tiny_folder: Callable[[str], Path]) -> Path:
    """A base of larger pictures whose samplers are not those of the embedded one."""
    return tiny_folder("flux")


@pytest.fixture(scope="module")
def url(library: Path, flow: Path) -> Iterator[str]:
    """The app, opened with a base that is smaller than the second."""
    with served(library=library, bases=(None, flow)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False, analytics_enabled=False)


def refusal(client: Client, endpoint: str, *given: Any, **named: Any) -> str:
    """What an endpoint says of what it does not take."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # gradio's own
        client.predict(*given, **named, api_name=endpoint)
    return str(caught.value)


def drawn(client: Client, **asked: Any) -> tuple[tuple[int, int], Recipe]:
    """Size and recipe of a picture."""
    ((made),) = client.predict(steps=2, **asked, api_name="/generate")
    with Image.open(made["image"]) as picture:
        return picture.size, Recipe.read(made["image"])


def test_each_base_draws_by_its_own_limits(client: Client) -> None:
    bases = {base["name"]: base for base in client.predict(api_name="/bases")}
    (first, small), (second, large) = bases.items()
    assert small["size"][0] < large["size"][0]
    size, recipe = drawn(client, base=second)
    assert (list(size), recipe.request.base, recipe.request.guidance_scale) == (
        large["size"],
        second,
        large["guidance"],
    )
    assert drawn(client, base=second, width=0, height=0)[0] == tuple(large["size"])
    assert list(drawn(client)[0]) == small["size"]
    wide = 4 * small["size"][0] + large["multiple"]
    assert drawn(client, base=second, width=wide, height=large["multiple"])[0] == (wide, large["multiple"])
    (foreign, *_) = [name for name in large["samplers"] if name not in small["samplers"]]
    assert drawn(client, base=second, sampler=foreign)[1].request.sampler == foreign
    for asked, words in (
        ({"base": first, "width": wide, "height": wide}, "more than 16 times"),
        ({"base": second, "width": 4096}, "width must be at most 2048, got 4096"),
        ({"base": second, "width": -8}, "width must be at least 0, got -8"),
        ({"base": first, "sampler": foreign}, f"sampler '{foreign}' is none of"),
        ({"base": "none"}, f"unknown base 'none'; there are: {first}, {second}"),
    ):
        assert words in refusal(client, "/generate", **asked)


@pytest.mark.parametrize("endpoint", LONG)
def test_what_is_cancelled_ends_at_the_next_step(endpoint: str, client: Client, hold: Callable[[int], Held]) -> None:
    held = hold(0)
    job = client.submit(**LONG[endpoint], api_name=endpoint)
    assert held.begun.wait(60)
    time.sleep(1.2)  # something has been yielded meanwhile
    assert not held.stopped.is_set()
    job.cancel()
    assert held.stopped.wait(20)  # by itself it never does
    held.free = 10
    assert len(client.predict(steps=1, api_name="/generate")) == 1


@pytest.mark.parametrize("endpoint", LONG)
def test_what_nobody_waits_for_any_more_ends(
    endpoint: str, url: str, client: Client, hold: Callable[[int], Held]
) -> None:
    held, place = hold(0), f"{url}gradio_api/call{endpoint}"
    told = client.view_api(print_info=False, return_format="dict")["named_endpoints"][endpoint]["parameters"]
    given = [LONG[endpoint].get(one["parameter_name"], one["parameter_default"]) for one in told]
    event = httpx.post(place, json={"data": given}).json()["event_id"]
    with httpx.stream("GET", f"{place}/{event}", timeout=60) as answer:
        assert held.begun.wait(60)
        assert next(answer.iter_lines())
        assert not held.stopped.is_set()
    assert held.stopped.wait(20)
    held.free = 10
    assert len(client.predict(steps=1, api_name="/generate")) == 1


@pytest.mark.parametrize(
    ("endpoint", "asked", "words"),
    [
        ("/generate", {"adapters": ["red"]}, "adapters must be a mapping of names to weights, got a list: ['red']"),
        ("/generate", {"adapters": "red"}, "adapters must be a mapping of names to weights, got 'red'"),
        ("/generate", {"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ("/generate", {"prompt": []}, "prompt must be text, got a list of nothing"),
        ("/generate", {"seed": True}, "seed must be a whole number, got True"),
        ("/grid", {"x": AXIS, "request": ["x"]}, "request must be a mapping of fields of /generate to values"),
        ("/grid", {"x": [1, 2]}, "x must be a mapping of kind, values and perhaps of, got a list: [1, 2]"),
        ("/grid", {"x": None}, "x must be a mapping of kind, values and perhaps of, got nothing"),
        ("/grid", {"x": AXIS, "adapters": {"red": 0.3}}, "a list of names, of which each has the weight `weight`, got"),
        (
            "/grid",
            {"x": AXIS, "adapters": [1]},
            "a list of names, of which each has the weight `weight`, got a list: [1]",
        ),
        ("/blend_map", {"first": "red", "second": "green", "request": 1}, "values, got 1"),
        ("/merge", {"weights": ["red"], "name": "x"}, "weights must be a mapping of names to weights, got a list"),
        ("/bake", {"weights": "red", "name": "x"}, "weights must be a mapping of names to weights, got 'red'"),
        ("/export", {"weights": {"red": 1}, "options": ["x"]}, "options must be a mapping of options to values, got a"),
        ("/train", {"name": "x", "settings": ["a"]}, "settings must be a mapping of options of the trainer to values"),
        ("/check", {"name": "x", "settings": "a"}, "settings must be a mapping of options of the trainer to values"),
        ("/stop", {"name": "x", "now": "yes"}, "now must be true or false, got 'yes'"),
        ("/resume", {"name": "x", "steps": "many"}, "steps must be a whole number, got 'many'"),
        ("/rename", {"name": "red", "new_name": {}}, "new_name must be text, got a mapping of nothing"),
        ("/upload", {"file": None}, "file must be an adapter file, got nothing"),
        ("/recipe", {"picture": None}, "picture must be a PNG that was made here, got nothing"),
    ],
)
def test_what_is_of_another_kind_is_refused_in_words(
    endpoint: str, asked: dict[str, Any], words: str, client: Client
) -> None:
    assert words in refusal(client, endpoint, **asked)


def test_numbers_and_nulls_of_json_are_taken(client: Client) -> None:
    _, recipe = drawn(client, prompt=None, seed=3.0, adapters=None, width=None)
    assert (recipe.request.seed, recipe.request.prompt) == (3, "a photo of a red ball")
    cells = client.predict(AXIS, None, {"steps": 1, "base": "pocket"}, ["red"], 0.5, None, api_name="/grid")[1]
    assert [cell["recipe"]["adapters"]["red"]["weight"] for cell in cells] == [0.5, 0.5]


def test_endpoints_are_documented(client: Client) -> None:
    endpoints = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert len(endpoints) == 28
    optional = {}
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name
        for one in [*endpoint["parameters"], *endpoint["returns"]]:
            assert one["python_type"]["type"] != "Any", (name, one)
            assert not re.fullmatch(r"|\d+\w\w|(param|parameter|value)_?\d+", one["label"]), (name, one)
        for one in endpoint["parameters"]:
            assert not re.fullmatch(r"param_\d+", one["parameter_name"]), (name, one)
        assert endpoint["returns"], name
        optional[name] = {one["parameter_name"] for one in endpoint["parameters"] if one["parameter_has_default"]}
        needed = [one["parameter_name"] for one in endpoint["parameters"] if not one["parameter_has_default"]]
        assert set(needed) <= {"name", "new_name", "label", "weights", "file", "picture", "x", "first", "second"}, name
    assert len(optional["/generate"]) == len(endpoints["/generate"]["parameters"])
    assert optional["/grid"] >= {"y", "request", "adapters", "weight", "subject"}
    assert optional["/blend_map"] >= {"alphas", "betas", "request", "subject"}
    assert optional["/merge"] >= {"options", "base"}
    assert optional["/export"] >= {"options", "base"}
    for name, part in (("/bake", "base"), ("/upload", "name"), ("/thumbnail", "picture"), ("/copy", "new_name")):
        assert part in optional[name]
    kinds = {one["parameter_name"]: one["python_type"]["type"] for one in endpoints["/generate"]["parameters"]}
    assert {kinds[name] for name in ("seed", "steps", "num_images", "width", "height")} == {"int"}


def test_programs_get_plain_words(client: Client) -> None:
    assert "<lora:red:abc> in the prompt" in refusal(client, "/generate", prompt="a <lora:red:abc>")
    assert "no adapter '<b>&'" in refusal(client, "/rename", "<b>&", "x")
