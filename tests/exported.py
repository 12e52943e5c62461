"""Pipelines with adapters to be exported, and what other programs make of the files: ΔW by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from diffusion_adapters import add_adapter, add_text_adapter
from diffusion_adapters.dialects import original_names
from diffusion_adapters.safe import read_safetensors
from diffusion_adapters.sources import Sources
from tests.hosts import small, stir
from tests.pipelines import build

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


def layers_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Published names, but of layers whose rows stand otherwise there."""
    found = original_names(model)
    return {name: parts for name, parts in found.items() if not any(part.endswith("~") for part in parts)}
