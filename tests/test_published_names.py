"""Names of layers in published checkpoints: files with them become those of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ChromaTransformer2DModel, FluxTransformer2DModel, Lumina2Transformer2DModel
from diffusers.loaders import single_file_utils as published
from torch import Tensor, nn

from diffusion_adapters import export_lora
from diffusion_adapters.sources import Sources
from tests.exported import adapted, denoiser, kohya_products, layers_of, wanted


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
