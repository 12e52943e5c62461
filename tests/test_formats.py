"""Files of other programs: every layer gets the ΔW that they mean, and pipelines draw what stock diffusers draws."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_adapters import coverage, delete_adapters, load_adapter, save_adapter, set_adapters
from diffusion_adapters.attach import adapter_sets
from diffusion_adapters.linalg import matrix
from diffusion_adapters.text import text_parts
from tests import dialects
from tests.dialects import CASES
from tests.hosts import distance
from tests.pipelines import build

STOCK = {
    "stable_diffusion-kohya_own_names": "",
    "stable_diffusion-diffusers_now": "",
    "stable_diffusion-diffusers_before_peft": "",
    "sdxl-kohya_sgm_names": "output_blocks_1_1",  # an upsampler where SDXL has none
    "flux-kohya_bfl_names": "linear1",  # cut at the widths of the real model
    "flux-ai_toolkit": "",
    "flux-xlabs": "",
}
"""What stock diffusers reads, and the part of it that it does not, or reads wrongly."""
fresh = functools.partial(build, seed=0)


@torch.no_grad()
def drawn(pipe: Any, name: str, **settings: Any) -> Tensor:
    """Latents of two steps."""
    settings |= {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"}
    settings |= {"max_sequence_length": 32} if name in ("flux", "sd3") else {}
    return pipe("a photo of sks cat", generator=torch.Generator().manual_seed(0), **settings).images


@torch.no_grad()
def applied(pipe: Any, name: str) -> dict[str, dict[str, Tensor]]:
    """ΔW of adapter `name` by component and path."""
    found: dict[str, dict[str, Tensor]] = {}
    for component, adapter_set in adapter_sets(pipe).items():
        places = adapter_set.places()
        own = adapter_set.of(name).items()
        found[component] = {path: a.delta_weight(matrix(places[path].base.weight).float()) for path, a in own}
    for component, part in text_parts(pipe, name).items():
        paths = [key.removesuffix(".lora_A.weight") for key in part.tensors if "lora_A" in key]
        pairs = {path: [part.tensors[f"{path}.lora_{side}.weight"] for side in "BA"] for path in paths}
        found[component] = {path: part.alpha / part.rank * up @ down for path, (up, down) in pairs.items()}
    return found


def assert_same(found: dict[str, dict[str, Tensor]], meant: dict[str, dict[str, Tensor]]) -> None:
    assert {component: set(own) for component, own in found.items()} == {c: set(own) for c, own in meant.items()}
    for component, own in meant.items():
        for path, delta in own.items():
            error = float((found[component][path] - delta).norm() / delta.norm())
            assert error < 1e-5, f"{component}.{path}: {error:.2g}"


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, dict[str, Tensor]]]:
    pipeline, make = CASES[request.param]
    tensors, meant = make(fresh(pipeline))
    return pipeline, dialects.save(tensors, tmp_path / "foreign.safetensors"), meant


every_case = pytest.mark.parametrize("file", CASES, indirect=True)


@every_case
def test_every_layer_gets_its_delta_weight(file: Any, tmp_path: Path) -> None:
    pipeline, path, meant = file
    pipe = fresh(pipeline)
    before = drawn(pipe, pipeline)
    name = load_adapter(pipe, path)
    assert_same(applied(pipe, name), meant)
    adapted = drawn(pipe, pipeline)
    assert (adapted - before).norm() > 0.01 * before.norm()
    assert all(coverage(pipe).values())
    saved = save_adapter(pipe, name, tmp_path / "ours.safetensors")
    delete_adapters(pipe, name)
    assert torch.equal(drawn(pipe, pipeline), before)
    load_adapter(pipe, saved, "again")
    assert_same(applied(pipe, "again"), meant)
    assert torch.equal(drawn(pipe, pipeline), adapted)
    set_adapters(pipe, [])
    assert torch.equal(drawn(pipe, pipeline), before)


@pytest.mark.parametrize("case", STOCK)
def test_stock_diffusers_draws_the_same(case: str, tmp_path: Path) -> None:
    pipeline, make = CASES[case]
    tensors = {
        key: value for key, value in make(fresh(pipeline))[0].items() if not STOCK[case] or STOCK[case] not in key
    }
    path = dialects.save(tensors, tmp_path / "foreign.safetensors")
    pipe, stock = fresh(pipeline), fresh(pipeline)
    before = drawn(pipe, pipeline)
    load_adapter(pipe, path)
    stock.load_lora_weights(path)
    assert distance(drawn(pipe, pipeline), drawn(stock, pipeline), before) < 1e-4
