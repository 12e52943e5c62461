"""What an exported file holds: its error, its rank, a blend of adapters, layers outside attention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion_adapters import AdapterWeight, add_adapter, export_lora, load_adapter, save_adapter, set_adapters
from diffusion_adapters.safe import read_safetensors
from tests.exported import adapted, assert_same, denoiser, kohya_products, layers_of, stock, wanted
from tests.hosts import stir
from tests.pipelines import build


@pytest.mark.parametrize("dialect", ["diffusers", "kohya", "comfyui"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["lora", "transformed_lora"])
def test_the_error_is_that_of_the_numbers_in_the_file(
    tmp_path: Path, family: str, dtype: torch.dtype, dialect: str
) -> None:
    pipe = adapted("sd3", family)
    report = export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect=dialect, dtype=dtype, rank=5)
    deltas = {key.replace("text_encoder.", "text_encoder.text_model.").replace("_2.", "_2.text_model."): delta
              for key, delta in wanted(pipe).items()}  # fmt: skip
    tensors, metadata = read_safetensors(report.path)
    assert {value.dtype for key, value in tensors.items() if not key.endswith("alpha")} == {dtype}
    if dialect == "diffusers":
        pairs = {key: [tensors[f"{key}.lora_{side}.weight"].float() for side in "BA"] for key in deltas}
        lost = sum(float((pairs[key][0] @ pairs[key][1] - delta).square().sum()) for key, delta in deltas.items())
    else:
        lost = whole_lost(pipe, kohya_products(report.path), deltas, dialect)
    whole = sum(float(delta.square().sum()) for delta in deltas.values())
    assert report.relative_error == pytest.approx((lost / whole) ** 0.5, rel=1e-3, abs=2e-7)
    assert float(metadata["relative_error"]) == pytest.approx(report.relative_error, rel=1e-3)
    if family == "lora" and dtype == torch.float32:
        assert report.relative_error < 1e-7
    else:
        assert report.relative_error > 1e-5


def whole_lost(pipe: Any, products: dict[str, Tensor], deltas: Mapping[str, Tensor], dialect: str) -> float:
    """Σ ‖alpha / rank · up @ down − ΔW‖² of layers that may be several projections, and of text encoders."""

    def lost(prefix: str, name: str, delta: Tensor) -> float:
        product = products.pop(f"{prefix}_{name.replace('.', '_')}" if dialect == "kohya" else f"{prefix}.{name}")
        return float((product - delta).square().sum())

    total = 0.0
    for layer, parts in layers_of(denoiser(pipe)).items():
        if f"transformer.{parts[0]}" in deltas:
            rows = torch.cat([deltas[f"transformer.{part}"] for part in parts])
            total += lost("lora_unet" if dialect == "kohya" else "diffusion_model", layer, rows)
    for component, clip, number in (("text_encoder", "l", 1), ("text_encoder_2", "g", 2)):
        prefix = f"lora_te{number}" if dialect == "kohya" else f"text_encoders.clip_{clip}.transformer"
        for key, delta in deltas.items():
            if key.startswith(f"{component}."):
                total += lost(prefix, key.removeprefix(f"{component}."), delta)
    assert not products
    return total


def test_energy_decides_the_rank_of_each_projection(tmp_path: Path) -> None:
    pipe = adapted("stable_diffusion", "transformed_lora", text=False)
    deltas = wanted(pipe)
    sizes = []
    for energy in (0.5, 0.9, 0.999):
        report = export_lora(pipe, "one", tmp_path / "lora.safetensors", energy=energy)
        tensors, _ = read_safetensors(report.path)
        for key, delta in deltas.items():
            down, up = (tensors[f"{key}.lora_{side}.weight"] for side in "AB")
            assert float((up @ down - delta).square().sum()) <= (1 - energy) * float(delta.square().sum()) * 1.001
        sizes.append(sum(value.numel() for value in tensors.values()))
        assert report.relative_error <= (1 - energy) ** 0.5
    assert sizes == sorted(set(sizes))
    assert export_lora(pipe, "one", tmp_path / "lora.safetensors", energy=0.999, rank=2).relative_error > 0.03
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"energy must be greater than 0 and at most 1, got {wrong}"):
            export_lora(pipe, "one", tmp_path / "lora.safetensors", energy=wrong)


def blended(name: str) -> Any:
    """A tiny pipeline with adapters of three families, one of them on text encoders too."""
    pipe = adapted(name)
    stir(add_adapter(pipe, "two", "wara", rank=2).parameters(), seed=6)
    stir(add_adapter(pipe, "three", "transformed_lora", rank=2, target_modules="to_q").parameters(), seed=7)
    return pipe


@pytest.mark.parametrize("name", ["stable_diffusion", "sd3"])
def test_a_blend_is_one_file(tmp_path: Path, name: str) -> None:
    """The sum over families of weight times ΔW, scopes included, whichever way the blend is named."""
    pipe = blended(name)
    one = AdapterWeight(0.5, scopes={"text_encoder": 0.2, "attn2": 2.0})
    weights: dict[str, Any] = {"one": one, "two": -0.75, "three": {"to_q": 1.5}}
    expected = wanted(pipe, weights)
    alone = wanted(pipe, "one")
    key = next(key for key in expected if key.startswith("text_encoder.") and key.endswith("q_proj"))
    torch.testing.assert_close(expected[key], 0.1 * alone[key])
    file = tmp_path / "blend.safetensors"
    report = export_lora(pipe, list(weights), file, adapter_weights=list(weights.values()))
    assert report.worst_error < 1e-5
    assert_same(stock(name, file), expected)
    set_adapters(pipe, list(weights), weights)
    for again in (weights, None):
        export_lora(pipe, again, file)
        assert_same(stock(name, file), expected)
    assert export_lora(pipe, ["one", "two"], file).exact


def test_a_blend_says_what_it_is_made_of(tmp_path: Path) -> None:
    pipe = blended("stable_diffusion")
    save_adapter(pipe, "one", tmp_path / "one.safetensors", trigger="sks cat", training={"steps": 7})
    save_adapter(pipe, "two", tmp_path / "two.safetensors", trigger="abc dog")
    export_lora(pipe, {"one": AdapterWeight(2.0, scopes={"attn1": 0.5}), "two": 0.25}, tmp_path / "blend.safetensors")
    _, metadata = read_safetensors(tmp_path / "blend.safetensors")
    made = json.loads(metadata["provenance"])
    assert made["method"] == "sum"
    assert [(own["name"], own["family"], own["weight"], own.get("scopes")) for own in made["sources"]] == [
        ("one", "lora", 2.0, {"attn1": 0.5}),
        ("two", "wara", 0.25, None),
    ]
    for own in made["sources"]:  # the hash that the file of a source says in its own header
        assert own["sha256"] == read_safetensors(tmp_path / f"{own['name']}.safetensors")[1]["sshs_model_hash"]
    assert metadata["modelspec.merged_from"] == "one, two"
    assert metadata["modelspec.trigger_phrase"] == "sks cat, abc dog"
    assert "ss_steps" not in metadata


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (AdapterWeight(start=0.2), "the denoising step"),
        (AdapterWeight(schedule={0.0: 1.0, 1.0: 0.0}), "the denoising step"),
        (AdapterWeight(mask=torch.ones(4, 4)), "the region"),
        (AdapterWeight(samples=[1.0, 0.0]), "the sample"),
        (AdapterWeight(bands=[1.0, 0.0], end=0.5), "the denoising step and the band"),
    ],
)
def test_what_one_file_cannot_hold_is_refused(tmp_path: Path, weight: AdapterWeight, reason: str) -> None:
    pipe = adapted("stable_diffusion", text=False)
    message = rf"adapter 'one' cannot be exported: its weight depends on {reason}, .* give it a number or scopes"
    with pytest.raises(ValueError, match=message):
        export_lora(pipe, "one", tmp_path / "a.safetensors", adapter_weights=weight)
    for names, given, text in (
        ("one", 0.0, "every weight of one is 0"),
        ([], None, "names is empty"),
        (["one", "one"], None, "named twice"),
        (["one", "tow"], None, "unknown adapter 'tow'"),
        ("one", {"attn9": 1.0}, "unknown scope 'attn9'"),
    ):
        with pytest.raises(ValueError, match=text):
            export_lora(pipe, names, tmp_path / "a.safetensors", adapter_weights=given)
    set_adapters(pipe, [])
    with pytest.raises(ValueError, match="no adapter is active"):
        export_lora(pipe, None, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dialect", ["diffusers", "kohya", "comfyui"])
def test_layers_outside_attention_are_exported_too(tmp_path: Path, dialect: str) -> None:
    """Convolutions and linears of another program's file are read, exported, and read again."""
    paths = (
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.resnets.0.time_emb_proj",
        "mid_block.attentions.0.proj_in",
        "up_blocks.0.upsamplers.0.conv",
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    )
    pipe = build("sdxl")
    tensors = {}
    generator = torch.Generator().manual_seed(3)
    for path in paths:
        weight = pipe.unet.get_submodule(path).weight
        down, up = (2, *weight.shape[1:]), (len(weight), 2, *[1] * (weight.dim() - 2))
        for side, shape in (("A", down), ("B", up)):
            tensors[f"unet.{path}.lora_{side}.weight"] = torch.randn(shape, generator=generator) * 0.1
    save_file(tensors, tmp_path / "foreign.safetensors")
    load_adapter(pipe, tmp_path / "foreign.safetensors", "one")
    expected = wanted(pipe)
    assert set(expected) == {f"unet.{path}" for path in paths}
    export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect=dialect)
    again = build("sdxl")
    load_adapter(again, tmp_path / "lora.safetensors", "one")
    assert_same(wanted(again), expected)
    if dialect == "diffusers":
        found = stock("sdxl", tmp_path / "lora.safetensors")
        assert_same({key: delta.flatten(1) for key, delta in found.items()}, expected)
