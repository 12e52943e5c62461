"""Baking: the checkpoint draws without adapters what the adapters drew, and the model is bitwise what it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diffusion_adapters import (
    AdapterWeight,
    add_adapter,
    add_text_adapter,
    add_tokens,
    bake,
    fuse_adapters,
    get_active_adapters,
    set_adapters,
    unfuse_adapters,
)
from diffusion_adapters.attach import adapter_sets
from diffusion_adapters.bake import PROVENANCE
from tests.hosts import build, pipeline, run, sample, small, stir
from tests.pipelines import build as build_pipeline

WEIGHTS: dict[str, Any] = {"a": AdapterWeight(0.7, scopes={"attn1": 0.5, "text_encoder": 2.0}), "b": -0.4}


def blended(model: Any = None) -> Any:
    """A tiny pipeline with adapters of two families, one of them on the text encoder too."""
    pipe = model or pipeline()
    stir(add_adapter(pipe, "a", "transformed_lora", **small("transformed_lora")).parameters())
    stir([*add_adapter(pipe, "b", "wara", **small("wara")).parameters(), *add_text_adapter(pipe, "a", rank=2)], seed=4)
    return pipe


def states(pipe: Any) -> dict[str, Tensor]:
    """A copy of every weight of the pipeline."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value.clone() for name, part in parts.items() for key, value in part.state_dict().items()}


def test_the_checkpoint_draws_the_same_without_adapters(tmp_path: Path) -> None:
    pipe = blended()
    set_adapters(pipe, [])
    plain = sample(pipe)
    set_adapters(pipe, list(WEIGHTS), WEIGHTS)
    wanted = sample(pipe)
    path = bake(pipe, WEIGHTS, tmp_path / "new" / "baked")
    baked = DiffusionPipeline.from_pretrained(path, local_files_only=True)
    baked.set_progress_bar_config(disable=True)
    assert float((sample(baked) - wanted).abs().max()) < 1e-4
    assert float((plain - wanted).abs().max()) > 1e-2
    folders = ("unet", "text_encoder", "vae")
    assert {file.suffix for name in folders for file in (path / name).iterdir()} == {".json", ".safetensors"}
    assert not any("lora" in key for key in states(baked))
    assert [entry.name for entry in path.parent.iterdir()] == ["baked"]
    made = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
    assert [(own["name"], own["family"], own["weight"]) for own in made["sources"]] == [
        ("a", "transformed_lora", 0.7),
        ("b", "wara", -0.4),
    ]


def test_the_model_is_bitwise_what_it_was(tmp_path: Path) -> None:
    pipe = blended()
    set_adapters(pipe, "b", 0.3)
    before, drawn, encoder = states(pipe), sample(pipe), pipe.text_encoder
    bake(pipe, WEIGHTS, tmp_path / "baked")
    after = states(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert pipe.text_encoder is encoder
    assert get_active_adapters(pipe) == {"b": 0.3}
    assert torch.equal(sample(pipe), drawn)


def test_what_is_active_is_baked_with_its_weights(tmp_path: Path) -> None:
    pipe = blended()
    set_adapters(pipe, ["b"], 0.6)
    wanted = sample(pipe)
    baked = DiffusionPipeline.from_pretrained(bake(pipe, None, tmp_path / "baked"), local_files_only=True)
    assert float((sample(baked) - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_other_pipelines(tmp_path: Path, name: str) -> None:
    pipe = blended(build_pipeline(name))
    component = "unet" if name == "sdxl" else "transformer"
    weights = WEIGHTS | {"a": AdapterWeight(0.7, scopes={"to_q": 0.5, "text_encoder": 2.0})}
    set_adapters(pipe, list(weights), weights)
    fuse_adapters(pipe)
    expected = {key: value.clone() for key, value in pipe.components[component].state_dict().items()}
    unfuse_adapters(pipe)
    baked = type(pipe).from_pretrained(bake(pipe, weights, tmp_path / "baked"), local_files_only=True)
    assert all(torch.equal(value, expected[key]) for key, value in baked.components[component].state_dict().items())


def test_a_denoiser_alone(tmp_path: Path) -> None:
    model = build("sd3")
    stir(add_adapter(model, "a", "loldu", **small("loldu")).parameters())
    wanted = run(model, "sd3")
    path = bake(model, "a", tmp_path / "baked")
    again = type(model).from_pretrained(path)  # type: ignore[attr-defined]
    torch.testing.assert_close(run(again, "sd3"), wanted, rtol=1e-4, atol=1e-4)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    model = build("sd3").to(torch.bfloat16)
    stir(add_adapter(model, "a", rank=2).parameters())
    path = bake(model, "a", tmp_path / "baked")
    again = type(model).from_pretrained(path, dtype=torch.bfloat16)  # type: ignore[attr-defined]
    key = "transformer_blocks.0.attn.to_q"
    delta = adapter_sets(model)["transformer"].of("a")[key].delta_weight(torch.empty(0))
    expected = (model.get_submodule(key).weight.float() + delta).to(torch.bfloat16)
    assert torch.equal(again.get_submodule(key).weight, expected)


def test_wrong_bakes_leave_nothing_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = blended()
    set_adapters(pipe, ["a", "b"], 0.5)
    before = states(pipe)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    for names, weights, path, message in (
        ("a", AdapterWeight(start=0.5), "new", "cannot be baked in: its weight depends on the denoising step"),
        ("a", AdapterWeight(mask=torch.ones(2, 2)), "new", "depends on the region"),
        ("c", None, "new", "unknown adapter 'c'"),
        ("a", None, "there", "there exists; give the name of a new folder"),
        ("a", 1e40, "new", "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            bake(pipe, names, tmp_path / path, adapter_weights=weights)
    stir(add_text_adapter(pipe, "b"), strength=1e38)
    with pytest.raises(ValueError, match=r"text_encoder.*nothing was saved"):
        bake(pipe, "b", tmp_path / "new")

    def full(*args: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(pipe), "save_pretrained", full)
    with pytest.raises(OSError, match="nothing was saved"):
        bake(pipe, "a", tmp_path / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there" / "file").read_text() == "mine"
    after = states(pipe)
    assert all(torch.equal(after[key], value) for key, value in before.items() if key in after)
    assert get_active_adapters(pipe) == {"a": 0.5, "b": 0.5}
    fuse_adapters(pipe)
    with pytest.raises(RuntimeError, match="call unfuse_adapters"):
        bake(pipe, "a", tmp_path / "new")
    plain = pipeline()
    add_adapter(plain, "t")
    add_tokens(plain, "t", words=("NEW",))
    with pytest.raises(ValueError, match="adapter 't' has new tokens, which a checkpoint"):
        bake(plain, "t", tmp_path / "new")
