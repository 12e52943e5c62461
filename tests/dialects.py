"""Adapter files as other programs write them, by hand from their key lists, and the ΔW that they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from diffusion_adapters.outside import is_convolution, layer_shape
from tests.original_names import BFL, DOUBLE, MMDIT, XLABS, layers, ldm_names

Tensors = dict[str, Tensor]
Factors = dict[str, tuple[Tensor, Tensor]]
Deltas = dict[str, dict[str, Tensor]]
"""ΔW (out, in) by component and path."""
SCALE = 2.0
"""alpha / rank of the files that have an alpha."""


@torch.no_grad()
def factors(model: nn.Module, names: Mapping[str, tuple[str, ...]], rank: int = 3, seed: int = 1) -> Factors:
    """(B, A) by name in a file, for the layers that each name stands for, which share A; a convolution's as kernels."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, paths in names.items():
        modules: list[Any] = [model.get_submodule(path) for path in paths]
        out, inner = sum(layer_shape(module)[0] for module in modules), layer_shape(modules[0])[1]
        up, down = torch.randn(out, rank, generator=generator), torch.randn(rank, inner, generator=generator)
        size = 0.3 * float(modules[0].weight.norm() / (up[: layer_shape(modules[0])[0]] @ down).norm()) ** 0.5
        up, down = up * size, down * size
        if is_convolution(modules[0]):
            up, down = up[..., None, None], down.unflatten(1, modules[0].weight.shape[1:])
        found[name] = (up, down)
    return found


def deltas(model: nn.Module, names: Mapping[str, tuple[str, ...]], made: Factors, scale: float) -> dict[str, Tensor]:
    """ΔW by path of what `factors` made."""
    found = {}
    for name, (up, down) in made.items():
        whole, start = scale * up.flatten(1) @ down.flatten(1), 0
        for path in names[name]:
            size = layer_shape(model.get_submodule(path))[0]
            found[path] = whole[start : start + size]
            start += size
    return found


def alone(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names that are paths."""
    return {path: (path,) for path in paths}


def kohya(prefix: str, made: Factors) -> Tensors:
    """kohya's keys, with an alpha that is not the rank."""
    tensors = {}
    for name, (up, down) in made.items():
        key = f"{prefix}_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        tensors[f"{key}.alpha"] = torch.tensor(SCALE * len(down))
    return tensors


def dotted(prefix: str, made: Factors, down: str = "lora_A", up: str = "lora_B") -> Tensors:
    """Keys with dots, of scale 1: those of diffusers, of ComfyUI, of old versions of diffusers."""
    tensors = {}
    for name, (left, right) in made.items():
        tensors |= {f"{prefix}{name}.{up}.weight": left, f"{prefix}{name}.{down}.weight": right}
    return tensors


def save(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write `tensors` to `path`."""
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return path


CASES: dict[str, tuple[str, Callable[[Any], tuple[Tensors, Deltas]]]] = {}
"""Name -> (pipeline, what makes the file and what it means)."""
Case = Callable[[Any], tuple[Tensors, Deltas]]


def case(pipeline: str) -> Callable[[Case], Case]:
    """Enter a maker of a file for one of the tiny pipelines."""

    def enter(make: Case) -> Case:
        CASES[f"{pipeline}-{make.__name__}"] = (pipeline, make)
        return make

    return enter


def encoders(pipe: Any, prefixes: Mapping[str, str], write: Callable[[str, Factors], Tensors], scale: float) -> Any:
    """Tensors and deltas of the attention and the MLP of CLIP text encoders, by component and prefix."""
    tensors, meant = {}, {}
    for component, prefix in prefixes.items():
        model = getattr(pipe, component)
        paths = [path for path in layers(model) if "encoder.layers" in path]
        names = {f"text_model.{path.removeprefix('text_model.')}": (path,) for path in paths}
        made = factors(model, names, rank=2)
        tensors |= write(prefix, made)
        meant[component] = deltas(model, names, made, scale)
    return tensors, meant


def whole(pipe: Any, names: Mapping[str, tuple[str, ...]], write: Callable[[Factors], Tensors], scale: float) -> Any:
    """Tensors and deltas of a denoiser."""
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    model = getattr(pipe, component)
    made = factors(model, names)
    return write(made), {component: deltas(model, names, made, scale)}


def both(first: tuple[Tensors, Deltas], second: tuple[Tensors, Deltas]) -> tuple[Tensors, Deltas]:
    """One file of two."""
    return {**first[0], **second[0]}, {**first[1], **second[1]}


def kohya_unet(made: Factors) -> Tensors:
    return kohya("lora_unet", made)


@case("stable_diffusion")
def kohya_own_names(pipe: Any) -> Any:
    text = encoders(pipe, {"text_encoder": "lora_te"}, kohya, SCALE)
    return both(whole(pipe, alone(layers(pipe.unet)), kohya_unet, SCALE), text)


@case("stable_diffusion")
def kohya_ldm_names(pipe: Any) -> Any:
    return whole(pipe, ldm_names(pipe.unet), kohya_unet, SCALE)


@case("sdxl")
def kohya_sgm_names(pipe: Any) -> Any:
    text = encoders(pipe, {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}, kohya, SCALE)
    return both(whole(pipe, ldm_names(pipe.unet), kohya_unet, SCALE), text)


@case("stable_diffusion")
def diffusers_now(pipe: Any) -> Any:
    own = {"text_encoder": "text_encoder."}
    names = alone(layers(pipe.unet))
    text = encoders(pipe, own, dotted, 1.0)
    return both(whole(pipe, names, lambda made: dotted("unet.", made), 1.0), text)


@case("stable_diffusion")
def diffusers_before_peft(pipe: Any) -> Any:
    """A LoRA was a processor in a UNet, and a layer beside the linear one in a text encoder."""

    def processors(made: Factors) -> Tensors:
        renamed = {}
        for path, pair in made.items():
            attention, _, role = path.replace(".to_out.0", ".to_out").rpartition(".")
            renamed[f"{attention}.processor.{role}_lora"] = pair
        return dotted("unet.", renamed, "down", "up")

    def beside(prefix: str, made: Factors) -> Tensors:
        return dotted(prefix, made, "lora_linear_layer.down", "lora_linear_layer.up")

    paths = [path for path in layers(pipe.unet) if ".attn" in path]
    text = encoders(pipe, {"text_encoder": "text_encoder."}, beside, 1.0)
    return both(whole(pipe, alone(paths), processors, 1.0), text)


@case("stable_diffusion")
def comfyui_unet(pipe: Any) -> Any:
    text = encoders(pipe, {"text_encoder": "text_encoders.clip_l.transformer."}, dotted, 1.0)
    return both(whole(pipe, ldm_names(pipe.unet), lambda made: dotted("diffusion_model.", made), 1.0), text)


@case("stable_diffusion")
def lycoris_names(pipe: Any) -> Any:
    return whole(pipe, alone(layers(pipe.unet)), lambda made: kohya("lycoris", made), SCALE)


@case("flux")
def kohya_bfl_names(pipe: Any) -> Any:
    return whole(pipe, BFL, kohya_unet, SCALE)


@case("flux")
def comfyui_bfl_names(pipe: Any) -> Any:
    return whole(pipe, BFL, lambda made: dotted("diffusion_model.", made), 1.0)


@case("flux")
def bfl_names_alone(pipe: Any) -> Any:
    return whole(pipe, BFL, lambda made: dotted("", made), 1.0)


@case("flux")
def ai_toolkit(pipe: Any) -> Any:
    names = alone(layers(pipe.transformer))
    return whole(pipe, names, lambda made: dotted("transformer.", made), 1.0)


@case("flux")
def xlabs(pipe: Any) -> Any:
    names = {name: tuple(f"transformer_blocks.0.{path}" for path in DOUBLE[part]) for name, part in XLABS.items()}
    single = "single_transformer_blocks.0"
    names["single_blocks.0.processor.qkv_lora"] = tuple(f"{single}.attn.to_{role}" for role in "qkv")
    names["single_blocks.0.processor.proj_lora"] = (f"{single}.proj_out",)
    return whole(pipe, names, lambda made: dotted("", made, "down", "up"), 1.0)


@case("sd3")
def kohya_mmdit_names(pipe: Any) -> Any:
    text = encoders(pipe, {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}, kohya, SCALE)
    return both(whole(pipe, MMDIT, kohya_unet, SCALE), text)


@case("sd3")
def comfyui_mmdit_names(pipe: Any) -> Any:
    return whole(pipe, MMDIT, lambda made: dotted("diffusion_model.", made), 1.0)
