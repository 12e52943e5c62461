"""The worker: samplers, sizes, pictures to draw from, tags, bases that take turns, and recipes that repeat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from PIL import Image

pytest.importorskip("gradio")

from diffusion_adapters import add_adapter, save_adapter
from diffusion_adapters.cli.common import POCKET
from tests.browser import GALLERY
from tests.hosts import stir
from tests.tiny import save_pipeline
from ui.bases import Base
from ui.common import App
from ui.controls import sound
from ui.history import Session
from ui.library import Library
from ui.recipe import KEY, Recipe
from ui.request import Dial, Request, encode_image
from ui.studio import Studio
from ui.tabs.create import Create, tell

ASK: dict[str, Any] = {"prompt": "a photo of a sks creature", "seed": 5, "steps": 3, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The embedded base and a tiny one, with adapters of the first."""
    other = save_pipeline(tmp_path_factory.mktemp("bases") / "other")
    return Studio([Base.of(None), Base.of(str(other))], Library([GALLERY]))


def draw(studio: Studio, weights: dict[str, Any] | None = None, image: Any = None, **changes: Any) -> np.ndarray:
    ((_, picture),) = studio.make(Request(**{**ASK, **changes}), weights or {}, image=image)
    return np.asarray(picture)


def test_every_sampler_draws(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    names = studio.traits().samplers
    assert names[0] == "DDIM"
    assert {"EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete"} <= set(names)
    assert "KDPM2AncestralDiscrete" not in names  # it divides by what is left of a picture in this base's noise
    pictures = {name: draw(studio, sampler=name, steps=10 if "Ancestral" in name else 3) for name in names}
    assert all(picture.std() > 30 for picture in pictures.values())
    np.testing.assert_array_equal(pictures["DDIM"], draw(studio))
    assert len({picture.tobytes() for picture in pictures.values()}) > len(names) - 3
    with pytest.raises(ValueError, match="sampler 'Magic' is none of DDIM"):
        draw(studio, sampler="Magic")
    monkeypatch.setattr(EulerDiscreteScheduler, "step", lambda self, made, time, noisy, **_: (noisy * torch.nan,))
    with pytest.raises(ValueError, match="no number any more after EulerDiscrete in 3 steps"):
        draw(studio, sampler="EulerDiscrete")


def test_sizes(studio: Studio) -> None:
    assert draw(studio, width=64, height=32).shape == (32, 64, 3)
    for changes, words in (({"width": 50}, "multiple of 8"), ({"width": 2048, "height": 2048}, "more than 16 times")):
        with pytest.raises(ValueError, match=words):
            draw(studio, **changes)


def test_from_a_picture(studio: Studio) -> None:
    source = Image.linear_gradient("L").convert("RGB")
    near, far = (draw(studio, image=source, strength=s, steps=10) for s in (0.2, 0.9))
    shown = np.asarray(source.resize((48, 48)), dtype=float)
    assert np.abs(near - shown).mean() < np.abs(far - shown).mean()
    ((_, picture),) = studio.make(Request(**ASK), {"red": 1.0}, image=source)
    back = Recipe.from_dict(Recipe(Request(), image=source).as_dict())
    assert back.image is not None
    recipe = Recipe.from_dict(json.loads(picture.info[KEY]))
    ((_, again),) = studio.make(recipe.request, recipe.adapters, image=recipe.image)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(picture))


def test_tags_multiply_and_stay_in_the_recipe(studio: Studio) -> None:
    plain = draw(studio, {"red": 0.4})
    prompt = ASK["prompt"]
    np.testing.assert_array_equal(draw(studio, prompt=f"{prompt} <lora:red:0.4>"), plain)
    np.testing.assert_array_equal(draw(studio, {"red": 0.8}, prompt=f"{prompt} <lora:red:0.5>"), plain)
    with pytest.raises(ValueError, match="no adapter 'nobody' in the library"):
        draw(studio, prompt="<lora:nobody:1>")


def test_a_dial_does_what_it_says(studio: Studio) -> None:
    left = Image.new("L", (2, 1))
    left.putpixel((0, 0), 255)
    base, whole = draw(studio), draw(studio, {"red": 1.0})
    seen = {base.tobytes(), whole.tobytes()}
    for dial in (
        {"mask": encode_image(left)}, {"start": 0.5}, {"bands": [1, 0, 0]}, {"scopes": {"up_blocks.0": 0.0}},
    ):  # fmt: skip
        picture = draw(studio, {"red": dial})
        assert picture.tobytes() not in seen
        seen.add(picture.tobytes())
    np.testing.assert_array_equal(draw(studio, {"red": {"scopes": {"unet": 0.0}}}), base)
    assert set(studio.base().blocks) == {"down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"}
    with pytest.raises(ValueError, match="unknown scope"):
        draw(studio, {"red": Dial(scopes={"basement": 0.0})})


def test_bases_take_turns(studio: Studio) -> None:
    first, second = draw(studio, {"red": 1.0}), draw(studio, base="other")
    assert second.shape != first.shape
    np.testing.assert_array_equal(draw(studio, {"red": 1.0}, base="pocket"), first)
    np.testing.assert_array_equal(draw(studio, base="other"), second)
    with pytest.raises(ValueError, match=r"red is refused: .*made for another base"):
        draw(studio, {"red": 1.0}, base="other")
    with pytest.raises(ValueError, match="unknown base 'third'; there are: pocket, other"):
        draw(studio, base="third")


def test_users_may_name_bases_unless_the_app_is_open_to_others(studio: Studio, tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "third")
    assert studio.add_base(str(folder)).name == "third"
    assert draw(studio, base="third").ndim == 3
    twin = tmp_path / "twin" / "third"
    shutil.copytree(folder, twin)
    for source, words in ((str(twin), "another base called 'third'"), ("no/such/place", "no such folder")):
        with pytest.raises((ValueError, OSError), match=words):
            studio.add_base(source)
    np.testing.assert_array_equal(draw(studio), draw(studio))
    studio.open_to_bases = False
    with pytest.raises(ValueError, match="takes no others"):
        studio.add_base(str(twin))
    studio.open_to_bases = True


def test_a_hybrid_has_a_dial_for_each_domain(studio: Studio, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(POCKET)
    own = add_adapter(pipe, "duo", "hybrid").of("duo").values()
    stir([value for adapter in own for value in adapter.parameters()], seed=1, strength=0.3)
    save_adapter(pipe, "duo", tmp_path / "duo.safetensors")
    hybrid = Studio([Base.of(None)], Library([tmp_path]))
    (entry,) = hybrid.library.scan(hybrid.base())
    assert entry.domains == ("first", "second")
    base, whole = draw(hybrid), draw(hybrid, {"duo": 1.0})
    one, other = (draw(hybrid, {"duo": {"domains": {domain: 0.0}}}) for domain in entry.domains)
    assert len({picture.tobytes() for picture in (base, whole, one, other)}) == 4
    np.testing.assert_array_equal(draw(hybrid, {"duo": {"domains": dict.fromkeys(entry.domains, 0.0)}}), base)
    with pytest.raises(ValueError, match="third"):
        draw(hybrid, {"duo": {"domains": {"third": 0.0}}})


@pytest.fixture(scope="module")
def create(studio: Studio) -> Create:
    with gr.Blocks():
        return Create(App(studio, studio.library))


def asked(create: Create, **changes: Any) -> list[Any]:
    """What stands in the controls."""
    names = list(create.controls.fields)
    values = dict(zip(names, (part.value for part in create.asked), strict=False)) | {"steps": 2} | changes
    return [*values.values(), Image.new("RGB", (48, 48)), *(part.value for part in create.asked[len(names) + 1 :])]


def test_what_stands_in_the_controls_is_checked_by_their_names(create: Create) -> None:
    for name, value, words in (
        ("seed", -1, "Seed must be at least 0, got -1"),
        ("steps", 3.7, "Steps must be a whole number, got 3.7"),
        ("num_images", 9, "Pictures must be at most 8, got 9"),
    ):
        given = asked(create, **{name: value})
        part = create.controls.fields[name]
        assert part.preprocess(value) == value
        assert part.get_block_name() in ("number", "slider")
        assert create.preview(Session(), "", *given)[-1] == words
        with pytest.raises(gr.Error, match=words):
            next(create.make(Session(), "", *given))
    request, *_ = create.read(asked(create, seed=None, guidance_scale=3))
    assert (request.seed, request.guidance_scale) == (0, 3)
    assert sound({"prompt": "a ball", "seed": -1, "steps": None, "width": 64, "gone": 1}) == Request(
        prompt="a ball", width=64
    )


def test_the_mix_that_was_used_is_told_with_its_tags(create: Create) -> None:
    *_, (*_, said) = create.make(Session(), "", *asked(create, prompt="a ball <lora:red:0.8> <lora:green:0.5>"))
    assert "1 of 1 · `red` × 0.8, `green` × 0.5 · seed 0" in said
    assert "`red` × 0.4 ·" in tell(Request(prompt="a ball <lora:red:0.5>"), {"red": Dial(weight=0.8)}, 1)


def test_a_preview_is_drawn_once_and_not_after_its_picture(create: Create) -> None:
    session = Session()

    def previewed(**changes: Any) -> bool:
        *_, said = create.preview(session, "", *asked(create, **changes))
        assert said == gr.skip() or said.startswith("Preview of 2 steps")
        return said != gr.skip()

    assert previewed()
    assert not previewed()
    assert previewed(guidance_scale=4.0)
    *_, (*_, said) = create.make(session, "", *asked(create))
    assert said.startswith("Done. 1 of 1")
    assert not previewed(seed=7)  # of a slider moved before, come late; the picture has a seed of its own
    assert previewed(guidance_scale=4.0)
