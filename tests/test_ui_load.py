"""Fifty clients at once: everyone gets their own picture, and nobody another's."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import Client

from tests.browser import GALLERY
from ui.bases import Base
from ui.library import Library
from ui.recipe import KEY, Recipe
from ui.studio import Studio

CLIENTS = 50
PROMPT = "a photo of a {} creature"


def asked(number: int) -> dict[str, Any]:
    """What one client asks for; no two are alike."""
    weights: list[dict[str, Any]] = [
        {"red": 0.5 + number / CLIENTS}, {"green": {"weight": 1.0, "start": number / CLIENTS}},
        {"red": 0.3, "green": -0.2}, {},
    ]  # fmt: skip
    return {
        "prompt": PROMPT.format(("sks", "zwx")[number % 2]), "seed": number, "steps": 4, "guidance_scale": 2.0,
        "adapters": weights[number % 4],
    }  # fmt: skip


@pytest.mark.slow
def test_fifty_clients(app_url: str) -> None:
    waited: dict[int, float] = {}

    def one(number: int, client: Client) -> dict[str, Any]:
        start = time.perf_counter()
        (made,) = client.predict(**asked(number), api_name="/generate")
        waited[number] = time.perf_counter() - start
        return made

    clients = [
        Client(app_url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 600}) for _ in range(CLIENTS)
    ]
    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(one, range(CLIENTS), clients))
    seconds = time.perf_counter() - start

    alone = Studio([Base.of(None)], Library([GALLERY]))
    start = time.perf_counter()
    for number, made in enumerate(together):
        with Image.open(made["image"]) as image:
            recipe = Recipe.from_dict(json.loads(image.info[KEY]))
            picture = np.asarray(image)
        assert (recipe.request.seed, recipe.request.prompt) == (number, asked(number)["prompt"])
        ((_, wanted),) = alone.make(recipe.request, asked(number)["adapters"])
        np.testing.assert_array_equal(picture, np.asarray(wanted))
    one_by_one = time.perf_counter() - start
    said = sorted(waited.values())
    print(
        f"{CLIENTS} clients: {seconds:.1f} s for all, first {said[0]:.2f} s, median {said[CLIENTS // 2]:.1f} s, "
        f"last {said[-1]:.1f} s; the same made alone one after the other {one_by_one:.1f} s"
    )
