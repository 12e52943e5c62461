"""The keys under which other programs look for a LoRA: those of diffusers, of kohya's scripts, of ComfyUI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .formats.originals import ORIGINALS
from .outside import is_convolution
from .site import is_projection

DIALECTS = ("diffusers", "kohya", "comfyui")
KOHYA_MODULES = {
    "FluxTransformer2DModel": "networks.lora_flux",
    "ChromaTransformer2DModel": "networks.lora_flux",
    "SD3Transformer2DModel": "networks.lora_sd3",
    "Lumina2Transformer2DModel": "networks.lora_lumina",
    "UNet2DConditionModel": "networks.lora",
}
"""Bases that kohya's scripts train, by class of the denoiser, and the module of theirs that a file names."""


def check_dialect(dialect: str, denoisers: Mapping[str, nn.Module]) -> None:
    """Raise ValueError for a dialect that does not exist, or that has no names for one of the denoisers."""
    if dialect not in DIALECTS:
        raise ValueError(f"unknown dialect {dialect!r}; one of {', '.join(DIALECTS)}")
    for component, denoiser in denoisers.items():
        kind = type(denoiser).__name__
        if dialect != "diffusers" and (kind not in KOHYA_MODULES or component not in ("unet", "transformer")):
            raise ValueError(
                f"dialect {dialect!r} has no names for {component}, a {kind}; it has for {', '.join(KOHYA_MODULES)}. "
                "Use the dialect 'diffusers'"
            )


class Piece(NamedTuple):
    """A layer of ours as rows of one of theirs. `swapped`: they have its lower half above the upper."""

    component: str
    path: str
    swapped: bool = False

    @property
    def where(self) -> tuple[str, str]:
        return self.component, self.path


def original_names(denoiser: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of a layer in the checkpoint that the base was published as -> our layers in it, from the top row on.

    Of several names the first; a layer that ends in `~` has its halves swapped there.
    """
    layers = {path for path, module in denoiser.named_modules() if is_projection(module) or is_convolution(module)}
    found: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for name, parts in ORIGINALS[type(denoiser).__name__](denoiser).items():
        paths = {part.removesuffix("~") for part in parts}
        if paths <= layers and seen.isdisjoint(paths):
            found[name] = parts
            seen |= paths
    return found


def layer_names(
    dialect: str, denoisers: Mapping[str, nn.Module], places: Iterable[tuple[str, str]]
) -> dict[str, tuple[Piece, ...]]:
    """Name of each layer in the dialect -> the places (component, path) that it holds, from the top row on.

    Raises ValueError for a place that the dialect has no name for.
    """
    found: dict[str, tuple[Piece, ...]] = {}
    left = dict.fromkeys(places)
    for component in dict.fromkeys(component for component, _ in left):
        own = [path for where, path in left if where == component]
        named: dict[str, tuple[str, ...]] = {path: (path,) for path in own}
        prefix = component
        if dialect != "diffusers" and component in denoisers:
            prefix = "lora_unet" if dialect == "kohya" else "diffusion_model"
            if dialect == "comfyui" or not _is_first_unet(denoisers[component]):
                named = original_names(denoisers[component])
        elif dialect != "diffusers":
            prefix = _text_prefix(dialect, component, denoisers)
        for name, parts in named.items():
            pieces = tuple(Piece(component, part.removesuffix("~"), part.endswith("~")) for part in parts)
            if any(piece.where in left for piece in pieces):
                full = f"{prefix}_{name.replace('.', '_')}" if dialect == "kohya" else f"{prefix}.{name}"
                found[full] = pieces
    for piece in (piece for pieces in found.values() for piece in pieces):
        left.pop(piece.where, None)
    if left:
        component, path = next(iter(left))
        raise ValueError(f"dialect {dialect!r} has no name for {component}.{path}; use the dialect 'diffusers'")
    return found


def write_layer(
    dialect: str, name: str, blocks: Sequence[tuple[Tensor, Tensor] | int], alpha: float
) -> dict[str, Tensor]:
    """Tensors by key of a layer. `blocks`: (B, A) of each of its pieces, or its number of rows where there is none."""
    present = [block for block in blocks if not isinstance(block, int)]
    up, down = present[0]
    if len(blocks) > 1:  # one matrix there: B is block-diagonal
        up = torch.block_diag(*(up.new_zeros(block, 0) if isinstance(block, int) else block[0] for block in blocks))
        down = torch.cat([block[1] for block in present])
    if dialect == "diffusers":
        return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}


def _is_first_unet(denoiser: nn.Module) -> bool:
    """Whether it is the UNet of Stable Diffusion 1 or 2, whose layers kohya's scripts name as diffusers does."""
    sdxl = getattr(denoiser, "config", {}).get("addition_embed_type") == "text_time"
    return type(denoiser).__name__ == "UNet2DConditionModel" and not sdxl


def _text_prefix(dialect: str, component: str, denoisers: Mapping[str, nn.Module]) -> str:
    denoiser = next(iter(denoisers.values()))
    first, alone = component == "text_encoder", _is_first_unet(denoiser)
    if dialect == "kohya":
        return "lora_te" if alone else f"lora_te{1 if first else 2}"
    second_generation = alone and getattr(denoiser, "config", {}).get("cross_attention_dim") == 1024
    return f"text_encoders.clip_{'h' if second_generation else 'l' if first else 'g'}.transformer"
