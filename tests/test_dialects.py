"""Files for other programs: stock diffusers, PEFT and the arithmetic of kohya's scripts find the same ΔW in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ChromaTransformer2DModel, FluxPipeline, FluxTransformer2DModel, Lumina2Transformer2DModel
from diffusers.loaders import single_file_utils as published
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusion_adapters import (
    AdapterWeight,
    add_adapter,
    add_text_adapter,
    export_lora,
    load_adapter,
    save_adapter,
    set_adapters,
)
from diffusion_adapters.dialects import original_names
from diffusion_adapters.safe import read_safetensors
from diffusion_adapters.sources import Sources
from tests.hosts import small, stir
from tests.pipelines import build

BASES = ("stable_diffusion", "sdxl", "sd3", "flux")
FAMILIES_HERE = ("lora", "wara", "transformed_lora")
"""Low rank, low rank by a transform, and not low rank."""
COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def adapted(name: str, family: str = "lora", text: bool = True) -> Any:
    """A tiny pipeline with the adapter `one` on its denoiser and its CLIP text encoders."""
    pipe = build(name)
    parameters = list(add_adapter(pipe, "one", family, **small(family)).parameters())
    if text:
        parameters += add_text_adapter(pipe, "one", rank=3, alpha=6.0)
    stir(parameters, seed=5)
    return pipe


def denoiser(pipe: Any) -> Any:
    return pipe.components.get("transformer") or pipe.components["unet"]


def wanted(pipe: Any, names: Any = "one", weights: Any = None) -> dict[str, Tensor]:
    """Σ w ΔW by component and path; paths in text encoders without `text_model`."""
    sources = Sources(pipe, names, weights, "read")
    with torch.no_grad():
        return {
            f"{place.component}.{place.path}".replace("text_model.", ""): sum(d.weight * d.full() for d in place.deltas)
            for place in (*sources.places(), *sources.text_places())
        }


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    assert set(got) == set(expected)
    for key, delta in expected.items():
        assert float((got[key].float() - delta).norm()) <= tolerance * float(delta.norm()), key
    assert any(bool(delta.any()) for delta in expected.values())


def stock(name: str, file: Path) -> dict[str, Tensor]:
    """What stock diffusers makes of a file: ΔW of each layer that it put a LoRA on."""
    pipe = build(name)
    pipe.load_lora_weights(str(file), adapter_name="read")
    found = {}
    for component in COMPONENTS:
        part = pipe.components.get(component)
        for path, layer in part.named_modules() if isinstance(part, nn.Module) else ():
            if isinstance(layer, LoraLayer):
                found[f"{component}.{path}".replace("text_model.", "")] = layer.get_delta_weight("read").detach()
    return found


def kohya_products(file: Path) -> dict[str, Tensor]:
    """alpha / rank · up @ down by the name of a layer: what kohya's scripts and ComfyUI add to its weight."""
    tensors, _ = read_safetensors(file)
    names = {key.partition(".lora_")[0] for key in tensors if ".lora_" in key}
    assert set(tensors) == {f"{n}.{end}" for n in names for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    found = {}
    for name in names:
        down, up = tensors[f"{name}.lora_down.weight"].float(), tensors[f"{name}.lora_up.weight"].float()
        found[name] = float(tensors[f"{name}.alpha"]) / down.shape[0] * (up.flatten(1) @ down.flatten(1))
    return found


@pytest.mark.parametrize("family", FAMILIES_HERE)
@pytest.mark.parametrize("name", BASES)
def test_stock_diffusers_reads_denoiser_and_text_encoders(tmp_path: Path, name: str, family: str) -> None:
    pipe = adapted(name, family)
    report = export_lora(pipe, "one", tmp_path / "lora.safetensors", rank=64)
    assert_same(stock(name, report.path), wanted(pipe), max(1e-6, 2 * report.worst_error))
    assert report.worst_error < 1e-5
    assert report.exact == (family != "transformed_lora")


@pytest.mark.parametrize("family", FAMILIES_HERE)
@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
def test_stock_diffusers_reads_kohya_keys_of_unets(tmp_path: Path, name: str, family: str) -> None:
    pipe = adapted(name, family)
    export_lora(pipe, "one", tmp_path / "lora.safetensors", rank=64, dialect="kohya")
    keys = read_safetensors(tmp_path / "lora.safetensors")[0]
    prefixes = {"lora_unet", "lora_te1", "lora_te2"} if name == "sdxl" else {"lora_unet", "lora_te"}
    assert {"_".join(key.split("_")[:2]) for key in keys} == prefixes
    assert any("input_blocks" in key for key in keys) == (name == "sdxl")
    assert_same(stock(name, tmp_path / "lora.safetensors"), wanted(pipe))


def test_stock_diffusers_reads_kohya_keys_of_flux(tmp_path: Path) -> None:
    """Its reader knows the published width alone: two blocks of that size, without numbers of their own."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    adapter_set = add_adapter(model, "one", rank=1)
    stir(adapter_set.parameters())
    export_lora(model, "one", tmp_path / "lora.safetensors", dialect="kohya")
    read = FluxPipeline.lora_state_dict(str(tmp_path / "lora.safetensors"))
    if isinstance(read, tuple):
        read = read[0]
    x = torch.randn(3072, generator=torch.Generator().manual_seed(1))
    assert len(adapter_set.of("one")) == 11
    for path, adapter in adapter_set.of("one").items():
        up, down = (read[f"transformer.{path}.lora_{side}.weight"].float() for side in "BA")
        own = adapter.low_rank()
        assert own is not None
        torch.testing.assert_close(up @ (down @ x), (own[0] @ (own[1] @ x)).detach(), rtol=1e-4, atol=1e-5)


def layers_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Published names, but of layers whose rows stand otherwise there."""
    found = original_names(model)
    return {name: parts for name, parts in found.items() if not any(part.endswith("~") for part in parts)}


class Loose(dict[str, Tensor]):
    """A checkpoint that has something for every key that is asked for; `missed` are those it had to make up."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.missed: set[str] = set()

    def pop(self, key: str, *default: Any) -> Any:
        if key not in self:
            self.missed.add(key)
            return torch.zeros(6)
        return super().pop(key)


def checkpoint(model: nn.Module) -> Loose:
    """The linears and convolutions under their published names."""
    found = Loose()
    for name, parts in layers_of(model).items():
        for kind in ("weight", "bias"):
            values = [getattr(model.get_submodule(part), kind) for part in parts]
            if values[0] is not None:
                found[f"{name}.{kind}"] = torch.cat(values).detach()
    return found


def as_diffusers(name: str, model: nn.Module, weights: Loose) -> dict[str, Tensor]:
    """A published checkpoint by diffusers' own converter."""
    if name in ("stable_diffusion", "sdxl"):
        prefixed = {f"model.diffusion_model.{key}": value for key, value in weights.items()}
        return published.convert_ldm_unet_checkpoint(prefixed, model.config)
    convert: dict[str, Callable[..., dict[str, Tensor]]] = {
        "sd3": published.convert_sd3_transformer_checkpoint_to_diffusers,
        "flux": published.convert_flux_transformer_checkpoint_to_diffusers,
        "chroma": published.convert_chroma_transformer_checkpoint_to_diffusers,
        "lumina2": published.convert_lumina2_to_diffusers,
    }
    return convert[name](weights)


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "sd3"])
def test_weights_under_published_names_become_those_of_diffusers(tmp_path: Path, name: str, dialect: str) -> None:
    """W + alpha / rank · up @ down on the published names, converted by diffusers, is W + ΔW."""
    pipe = adapted(name, "wara", text=False)
    export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect=dialect)
    model = denoiser(pipe)
    weights = checkpoint(model)
    products = kohya_products(tmp_path / "lora.safetensors")
    named_alike = name == "stable_diffusion" and dialect == "kohya"
    if named_alike:  # which trains this UNet under diffusers' names
        weights = Loose({f"{path}.weight": layer.weight.detach() for path, layer in model.named_modules()
                         if isinstance(layer, nn.Linear | nn.Conv2d)})  # fmt: skip
    for key in list(weights):
        layer, _, kind = key.rpartition(".")
        named = f"lora_unet_{layer.replace('.', '_')}" if dialect == "kohya" else f"diffusion_model.{layer}"
        product = products.pop(named, None) if kind == "weight" else None
        if product is not None:
            weights[key] = weights[key] + product
    assert not products
    converted = weights if named_alike else as_diffusers(name, model, weights)
    deltas = {key.partition(".")[2]: delta for key, delta in wanted(pipe).items()}
    assert len(deltas) == len(list(Sources(pipe, "one", None, "read").places()))
    for path, delta in deltas.items():
        torch.testing.assert_close(converted[f"{path}.weight"], model.get_submodule(path).weight + delta)


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
@pytest.mark.parametrize("name", ["flux", "chroma", "lumina2"])
def test_rows_of_joined_projections_lie_below_each_other(tmp_path: Path, name: str, dialect: str) -> None:
    pipe = adapted(name, text=False)
    export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect=dialect)
    model, products = denoiser(pipe), kohya_products(tmp_path / "lora.safetensors")
    deltas = {key.partition(".")[2]: delta for key, delta in wanted(pipe).items()}
    for layer, parts in layers_of(model).items():
        named = f"lora_unet_{layer.replace('.', '_')}" if dialect == "kohya" else f"diffusion_model.{layer}"
        if deltas.keys().isdisjoint(parts):
            assert named not in products
            continue
        sizes = [model.get_submodule(part).out_features for part in parts]
        blocks = products.pop(named).split(sizes)
        for part, block in zip(parts, blocks, strict=True):
            torch.testing.assert_close(block, deltas.pop(part, torch.zeros_like(block)))
    assert not products
    assert not deltas


WIDE: dict[str, Callable[[], nn.Module]] = {
    "flux": lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1),
    "chroma": lambda: ChromaTransformer2DModel(num_layers=1, num_single_layers=1),
    "lumina2": lambda: Lumina2Transformer2DModel(num_layers=1, num_refiner_layers=1),
}


@pytest.mark.parametrize("name", WIDE)
def test_published_names_are_those_that_diffusers_converts(name: str) -> None:
    """At the published width, which its converters take for granted; shapes alone, without numbers."""
    with torch.device("meta"):
        model = WIDE[name]()
    weights = checkpoint(model)
    asked = set(weights)
    if name == "chroma":  # whose converter counts these
        weights["distilled_guidance_layer.layers.0.in_layer.weight"] = torch.zeros(1)
    converted = as_diffusers(name, model, weights)
    assert not weights
    for path in (part for parts in layers_of(model).values() for part in parts):
        assert converted[f"{path}.weight"].shape == model.get_submodule(path).weight.shape, path
    assert len(asked) > 8


@pytest.mark.parametrize("dialect", ["diffusers", "kohya", "comfyui"])
@pytest.mark.parametrize("name", BASES)
def test_text_encoders_are_named_as_each_program_does(tmp_path: Path, name: str, dialect: str) -> None:
    pipe = adapted(name)
    export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect=dialect)
    tensors, _ = read_safetensors(tmp_path / "lora.safetensors")
    prefixes = {
        "diffusers": ("text_encoder.", "text_encoder_2."),
        "kohya": ("lora_te_",) if name == "stable_diffusion" else ("lora_te1_", "lora_te2_"),
        "comfyui": ("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."),
    }[dialect]
    encoders = {"stable_diffusion": 1, "flux": 1}.get(name, 2)
    deltas = {key: delta for key, delta in wanted(pipe).items() if key.startswith("text_encoder")}
    for i, prefix in enumerate(prefixes[:encoders]):
        component = "text_encoder_2" if i else "text_encoder"
        path = "text_model.encoder.layers.0.self_attn.q_proj"
        if dialect == "diffusers":
            down, up = (tensors[f"{prefix}{path}.lora_{side}.weight"] for side in "AB")
        else:
            layer = f"{prefix}{path.replace('.', '_') if dialect == 'kohya' else path}"
            down, up = (tensors[f"{layer}.lora_{side}.weight"] for side in ("down", "up"))
            up = up * float(tensors[f"{layer}.alpha"]) / down.shape[0]
        torch.testing.assert_close(up @ down, deltas[f"{component}.encoder.layers.0.self_attn.q_proj"])


def test_peft_reads_it(tmp_path: Path) -> None:
    """PEFT's own LoRA on the bare denoiser, given the file's tensors, has the same ΔW."""
    pipe = adapted("sd3", text=False)
    report = export_lora(pipe, "one", tmp_path / "lora.safetensors")
    tensors, _ = read_safetensors(report.path)
    state = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    model = denoiser(build("sd3"))
    targets = sorted({key.partition(".lora_")[0] for key in state})
    inject_adapter_in_model(LoraConfig(r=report.rank, lora_alpha=report.rank, target_modules=targets), model)
    result = set_peft_model_state_dict(model, state)
    assert not result.unexpected_keys
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    got = {f"transformer.{path}": layer.get_delta_weight("default").detach() for path, layer in layers.items()}
    assert_same(got, wanted(pipe))


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
def test_a_base_without_names_in_a_dialect_is_refused(tmp_path: Path, dialect: str) -> None:
    pipe = adapted("sana", text=False)
    with pytest.raises(ValueError, match=rf"{dialect}.*transformer, a SanaTransformer2DModel.*'diffusers'"):
        export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect=dialect)
    with pytest.raises(ValueError, match=r"unknown dialect 'khoya'; one of diffusers, kohya, comfyui"):
        export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect="khoya")
    assert not list(tmp_path.iterdir())


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
