"""The pipelines that take weights, masks, schedules and tags of adapters in their call, for every kind and task."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from numpy.typing import NDArray
from PIL import Image

from diffusion_adapters import (
    AdapterWeight,
    add_adapter,
    add_text_adapter,
    delete_adapters,
    get_active_adapters,
    list_adapters,
    parse_prompt,
    set_adapters,
    use_adapters,
)
from tests.denoisers import redraw
from tests.hosts import stir
from tests.pipelines import SIDE, build, length
from tests.pipelines.parts import autoencoder

FOLDER = Path(__file__).parents[1] / "pipelines"
STOCK = {
    "sd": ("stable_diffusion", "StableDiffusion{}Pipeline"),
    "sdxl": ("sdxl", "StableDiffusionXL{}Pipeline"),
    "sd3": ("sd3", "StableDiffusion3{}Pipeline"),
    "flux": ("flux", "Flux{}Pipeline"),
}
TASKS = {"": "", "_img2img": "Img2Img", "_inpaint": "Inpaint"}
PROMPT = "a photo of sks cat"
LEFT = np.repeat([[1.0, 0.0]], 2, axis=0)
MOVES = 0.01
"""How much a picture must change in some place, in [0, 1], to count as another one."""


def wide_sd3() -> dict[str, Any]:
    """Parts with 16 latent channels, without which diffusers inpaints by no SD3."""
    transformer = build("sd3").transformer
    settings = {**transformer.config, "in_channels": 16, "out_channels": 16}
    parts = {"transformer": type(transformer).from_config(settings), "vae": autoencoder(3, 16)}
    redraw(parts["transformer"], 0)
    return parts


def load(kind: str, task: str, tiny_folder: Callable[[str], Path], cache: Path) -> Any:
    """The tiny pipeline of a kind by its file in `pipelines/`, with two adapters that have an effect and do not act."""
    with pytest.MonkeyPatch.context() as patch:  # diffusers copies the file there, and imports the copy
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(cache))
        patch.syspath_prepend(str(cache))
        file = str(FOLDER / f"adapter_blend_{kind}{task}.py")
        folder = tiny_folder(STOCK[kind][0])
        parts = wide_sd3() if (kind, task) == ("sd3", "_inpaint") else {}
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=file, trust_remote_code=True, **parts)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    for seed, name in enumerate(("pet", "style")):
        stir(add_adapter(pipe, name).adapters[f":{name}"].parameters(), seed, strength=0.5)
    set_adapters(pipe, [])
    return pipe


def stock_of(pipe: Any) -> Any:
    """The pipeline that it is made from, with the same components."""
    stock = type(pipe).__mro__[1](**pipe.components)
    stock.set_progress_bar_config(disable=True)
    return stock


def draw(pipe: Any, prompt: Any = PROMPT, seeds: Sequence[int] = range(9), **settings: Any) -> NDArray[np.float32]:
    """Pictures in two steps, each image from a seed of its own, (n, h, w, 3) in [0, 1]."""
    takes = inspect.signature(type(pipe).__call__).parameters
    count = (len(prompt) if isinstance(prompt, list) else 1) * settings.get("num_images_per_prompt", 1)
    shades = np.linspace(0, 255, SIDE * SIDE * 3).reshape(SIDE, SIDE, 3).astype(np.uint8)
    steps = 4 if "strength" in takes else 2  # of which the first half is left out
    given = {"image": Image.fromarray(shades), "mask_image": Image.new("L", (SIDE, SIDE), 255), "strength": 0.5}
    given |= {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "guidance_scale": 2.0, "output_type": "np"}
    given |= {"generator": [torch.Generator().manual_seed(seed) for seed in seeds[:count]], **length(pipe)}
    return pipe(prompt=prompt, **{name: value for name, value in given.items() if name in takes}, **settings).images


def moved(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())


@pytest.fixture(scope="module", params=[(kind, task) for kind in STOCK for task in TASKS], ids="".join)
def pipe(request: Any, tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(*request.param, tiny_folder, tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module")
def sd(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load("sd", "", tiny_folder, tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module")
def plain(sd: Any) -> NDArray[np.float32]:
    return draw(sd)


def test_bitwise_the_stock_pipeline_and_with_adapters_what_was_asked(pipe: Any, request: Any) -> None:
    kind, task = request.node.callspec.params["pipe"]
    stock = stock_of(pipe)
    assert type(pipe).__name__ == "AdapterBlendPipeline"
    assert type(stock) is getattr(diffusers, STOCK[kind][1].format(TASKS[task]))
    ours, theirs = (inspect.signature(each.__call__).parameters for each in (pipe, stock))
    assert set(ours) - set(theirs) == {"adapter_weights", "adapter_masks", "adapter_schedule", "domain_weights"}

    base = draw(stock)
    assert np.array_equal(draw(pipe), base)
    weight = AdapterWeight(0.8, schedule={0.0: 1.0, 0.5: 0.5}, mask=LEFT)
    with use_adapters(pipe, ["pet"], [weight]):  # the pipeline's scheduler is that of the stock one
        wanted = draw(stock)
    got = draw(pipe, f"{PROMPT} <lora:pet:0.8>", adapter_masks={"pet": LEFT}, adapter_schedule={0.0: 1.0, 0.5: 0.5})
    assert np.array_equal(got, wanted)
    assert moved(wanted, base) > MOVES
    assert get_active_adapters(pipe) == {}
    assert np.array_equal(draw(pipe), base)


def shown(sd: Any, plain: NDArray[np.float32], weights: Any, **call: Any) -> None:
    """Assert that a call draws what `set_adapters` with `weights` draws, and leaves what acted before acting."""
    before = get_active_adapters(sd)
    prompt = call.pop("prompt", PROMPT)
    got = draw(sd, prompt, **call)
    assert get_active_adapters(sd) == before
    with use_adapters(sd, list(weights), weights):
        wanted = draw(sd, PROMPT)
    assert np.array_equal(got, wanted)
    assert moved(got, plain) > MOVES


PAIRED = AdapterWeight(0.7, start=0.5)


@pytest.mark.parametrize(
    ("call", "weights"),
    [
        ({"adapter_weights": {"style": 0.7}}, {"style": 0.7}),
        ({"adapter_weights": [0.7, -0.3]}, {"pet": 0.7, "style": -0.3}),
        ({"adapter_weights": [0.7, {"mid_block": 0.0}]}, {"pet": 0.7, "style": {"mid_block": 0.0}}),
        ({"prompt": f"{PROMPT} <lora:style> <lora:pet:-0.5>"}, {"style": 1.0, "pet": -0.5}),
        ({"prompt": f"<lora:pet:0.5>{PROMPT}", "adapter_weights": {"pet": 0.5}}, {"pet": 0.25}),
        ({"prompt": f"<lora:pet:0.5>{PROMPT}", "adapter_weights": {"style": 2}}, {"style": 2.0, "pet": 0.5}),
        ({"prompt": f"<lora:pet>{PROMPT}", "adapter_weights": 0.4}, {"pet": 0.4}),
        ({"adapter_weights": {"pet": 0.7}, "adapter_schedule": (0.5, 1.0)}, {"pet": PAIRED}),
        ({"adapter_weights": {"pet": 0.7}, "adapter_schedule": {"pet": (0.5, 1.0)}}, {"pet": PAIRED}),
        (
            {"adapter_weights": [1.0, 1.0], "adapter_schedule": [None, abs]},
            {"pet": 1.0, "style": AdapterWeight(schedule=abs)},
        ),
        (
            {"adapter_weights": [1.0, 1.0], "adapter_masks": [LEFT, 1 - LEFT]},
            {"pet": AdapterWeight(mask=LEFT), "style": AdapterWeight(mask=1 - LEFT)},
        ),
        (
            {"adapter_weights": [1.0, 1.0], "adapter_masks": Image.fromarray((LEFT * 255).astype(np.uint8))},
            {"pet": AdapterWeight(mask=LEFT), "style": AdapterWeight(mask=LEFT)},
        ),
    ],
    ids=range(12),
)
def test_every_way_to_say_it(sd: Any, plain: NDArray[np.float32], call: dict[str, Any], weights: Any) -> None:
    shown(sd, plain, weights, **call)


def test_what_acts_already_is_refined_and_acts_again_afterwards(sd: Any, plain: NDArray[np.float32]) -> None:
    with use_adapters(sd, ["pet", "style"], [0.5, AdapterWeight(0.9, mask=LEFT)]):
        half = AdapterWeight(0.5, end=0.5)
        shown(sd, plain, {"pet": half, "style": AdapterWeight(0.9, mask=LEFT)}, adapter_schedule={"pet": (0, 0.5)})
        shown(sd, plain, {"style": 1.0}, prompt=f"{PROMPT}<lora:style>")
        with pytest.raises(ValueError, match="adapter 'style' has a mask in its weight already; give it once"):
            draw(sd, adapter_masks={"style": LEFT})


def test_prompts_of_one_batch_have_weights_of_their_own(sd: Any) -> None:
    prompts = [PROMPT, f"{PROMPT} <lora:pet:-0.5>", f"<lora:pet:0.8><lora:style:0.3> {PROMPT}"]
    got = draw(sd, prompts, num_images_per_prompt=2)
    weights = [[0.0, 0.0], [-0.5, 0.0], [0.8, 0.3]]
    for i in range(6):
        with use_adapters(sd, ["pet", "style"], weights[i // 2]):
            wanted = draw(sd, seeds=[i])
        assert moved(got[i], wanted[0]) < 1e-5, i
    assert moved(got[0], got[2]) > MOVES


def test_samples_of_a_weight_and_of_tags_multiply(sd: Any) -> None:
    weight = AdapterWeight(samples=[1.0, 0.5])
    got = draw(sd, [PROMPT, f"{PROMPT} <lora:pet>"], adapter_weights={"pet": weight})
    with use_adapters(sd, "pet", AdapterWeight(samples=[0.0, 0.5])):
        assert np.array_equal(got, draw(sd, [PROMPT, PROMPT]))
    with pytest.raises(ValueError, match="adapter 'pet' has samples for 2 images, but 4 are made"):
        draw(sd, [PROMPT, f"{PROMPT} <lora:pet>"], adapter_weights={"pet": weight}, num_images_per_prompt=2)


def test_a_text_encoder_has_one_weight_for_a_batch(sd: Any) -> None:
    add_adapter(sd, "both")
    try:
        stir(add_text_adapter(sd, "both"))
        assert draw(sd, [f"{PROMPT} <lora:both>"] * 2).shape[0] == 2
        with pytest.raises(ValueError, match=r"'both' changes text encoders too.*\(1.0, 0.0\); call the pipeline once"):
            draw(sd, [f"{PROMPT} <lora:both>", PROMPT])
    finally:
        delete_adapters(sd, "both")
    set_adapters(sd, [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"prompt": "a cat <lora:pat:0.8>"},
            "<lora:pat:0.8> in the prompt: unknown adapter 'pat', did you mean 'pet'?",
        ),
        ({"adapter_weights": {"pat": 1.0}}, "adapter_weights: unknown adapter 'pat', did you mean 'pet'?"),
        ({"adapter_weights": [1.0]}, "1 adapter_weights for 2 adapters: pet, style"),
        ({"adapter_weights": {"pet": float("nan")}}, "the weight of adapter 'pet' must be a finite number, got nan"),
        ({"adapter_weights": {"pet": 1.0}, "adapter_masks": {"style": LEFT}}, "adapter_masks names 'style', which"),
        ({"adapter_weights": {"pet": 1.0}, "adapter_masks": [LEFT, LEFT]}, "2 adapter_masks for 1 adapters: pet"),
        ({"adapter_weights": {"pet": 1.0}, "adapter_schedule": (0.5, 0.5)}, "start and end must be 0 <= start < end"),
        ({"adapter_masks": LEFT}, "adapter_masks is given, but no adapter acts; load one, or name it"),
        ({"negative_prompt": "bad <lora:pet:1>"}, "<lora:pet:1> stands in negative_prompt; tags belong in prompt"),
        ({"negative_prompt": ["bad <lora:pet>"]}, "<lora:pet> stands in negative_prompt; tags belong in prompt"),
    ],
    ids=range(10),
)
def test_what_is_refused(sd: Any, call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        draw(sd, **call)
    assert get_active_adapters(sd) == {}
    assert list(list_adapters(sd)) == ["pet", "style"]


def test_dials_of_a_hybrid_for_one_call(sd: Any, plain: NDArray[np.float32]) -> None:
    stir(add_adapter(sd, "mine", "hybrid").adapters[":mine"].parameters(), strength=0.5)
    set_adapters(sd, [])
    night = {"first": 0.0, "second": 0.6}
    with use_adapters(sd, "mine", 0.8, domain_weights=night):
        wanted = draw(sd)
    assert moved(wanted, plain) > 1e-3
    for dials in (night, {"mine": night}):
        assert np.array_equal(draw(sd, f"{PROMPT} <lora:mine:0.8>", domain_weights=dials), wanted)
    assert np.array_equal(draw(sd, adapter_weights={"mine": AdapterWeight(0.8, domains=night)}), wanted)
    assert np.array_equal(draw(sd, adapter_weights={"mine": 1.0}, domain_weights={"first": 0, "second": 0}), plain)
    with pytest.raises(ValueError, match="unknown domain 'frist' of adapter 'mine', did you mean 'first'"):
        draw(sd, adapter_weights={"mine": 1.0}, domain_weights={"frist": 1.0})
    delete_adapters(sd, "mine")


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("a  cat ,", "a  cat ,", {}),
        ("a cat <lora:pet:0.8>", "a cat", {"pet": 0.8}),
        ("<lora:pet> a cat", "a cat", {"pet": 1.0}),
        ("a <LoRA:my pet:-.5> cat, <lyco: style : 1e-1>, sunny", "a cat, sunny", {"my pet": -0.5, "style": 0.1}),
        ("<lora:a><adapter:b:0>", "", {"a": 1.0, "b": 0.0}),
        ("a cat <lora:pet>, sunny", "a cat, sunny", {"pet": 1.0}),
        ("cat<lora:pet>dog", "cat dog", {"pet": 1.0}),
        ("a <b> c <lora:a:1>", "a <b> c", {"a": 1.0}),
    ],
)
def test_tags_are_taken_out_of_a_prompt(prompt: str, text: str, weights: dict[str, float]) -> None:
    assert parse_prompt(prompt) == (text, weights)
    assert list(parse_prompt(prompt)[1]) == list(weights)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:pet", "'<lora:pet' in the prompt is not closed"),
        ("<lora:pet<lora:pet:1>", "'<lora:pet' in the prompt is not closed"),
        ("<lora::1>", "<lora::1> in the prompt names no adapter"),
        ("<lora:pet:abc>", "<lora:pet:abc> in the prompt: the weight 'abc' is no finite number"),
        ("<lora:pet:>", "<lora:pet:> in the prompt: the weight '' is no finite number"),
        ("<lora:pet:0.8:0.5>", "<lora:pet:0.8:0.5> in the prompt: the weight '0.8:0.5' is no finite number"),
        ("<lora:pet:inf>", "<lora:pet:inf> in the prompt: the weight 'inf' is no finite number"),
        ("<lora:pets>", "<lora:pets> in the prompt: unknown adapter 'pets', did you mean 'pet'?"),
        ("<lora:pet><lora:pet:2>", "<lora:pet:2> in the prompt: adapter 'pet' is named twice"),
        (" , " * 30000 + "<lora:pet", "'<lora:pet' in the prompt is not closed"),
    ],
    ids=range(10),
)
def test_wrong_tags_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_prompt(prompt, iter(["pet", "style"]))
