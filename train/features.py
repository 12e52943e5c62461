"""Features in which hybrid domains are told apart: of the frozen denoiser itself, or of vision models by path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.bases import Base
from train.ruler.encoders import load_model, vision_features

DENOISER = "denoiser"
LEVEL = 0.1
"""Noise level at which the denoiser looks at latents: low, so that it sees what they are."""


class Features(Protocol):
    """Clean latents as the denoiser knows them (b, c, h, w) -> unit rows (b, d), differentiable."""

    name: str

    def __call__(self, latents: Tensor, batch: Mapping[str, Tensor]) -> Tensor: ...


class _FoundError(Exception):
    """Ends a forward whose features are found."""


class DenoiserFeatures:
    """Mean and standard deviation over all places of the activations in the middle of the frozen denoiser.

    What enters the first block after the middle: the first up block of a UNet, the block at half depth of a
    transformer. The latents are noised to LEVEL by the sample's own noise and shown with the empty prompt; who calls
    turns adapters off. Half a forward, and half a backward.
    """

    name = DENOISER

    def __init__(self, base: Base) -> None:
        self.base = base
        self.block = block_after_the_middle(base.denoiser)
        with torch.no_grad():
            self.silence = base.encode_prompt([""])

    def __call__(self, latents: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        count = len(latents)
        level = self.base.spread_at(torch.full((count,), LEVEL), latents).to(latents.device)
        told = {name: value for name, value in batch.items() if name in ("seeds", "sizes")}
        told |= {name: value.expand(count, *value.shape[1:]).to(latents.device) for name, value in self.silence.items()}
        with _caught(self.block) as found, contextlib.suppress(_FoundError):
            self.base.predict(self.base.denoiser, {**told, "latents": latents, "spread": level})
        (middle,) = found
        tokens = middle.float().flatten(2).transpose(1, 2) if middle.dim() == 4 else middle.float()
        spread = tokens.var(1, correction=0).clamp(min=1e-12).sqrt()
        return F.normalize(torch.cat([tokens.mean(1), spread], dim=1), dim=1)


class TowerFeatures:
    """The image features of a transformers model, as the ruler reads them, of the latents' decoded pictures."""

    def __init__(self, base: Base, path: str, device: torch.device) -> None:
        """Raises FileNotFoundError, or ValueError for a model without image features."""
        self.name, self.base = path, base
        self.model, processor = load_model(path)
        self.model.requires_grad_(False).eval().to(device)
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        side = size.get("shortest_edge")
        self.size = (size.get("height", side), size.get("width", side))
        self.mean, self.std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std)
        )

    def __call__(self, latents: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        pixels = self.base.decode(latents).clamp(-1, 1) / 2 + 0.5
        seen = F.interpolate(pixels, self.size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return F.normalize(vision_features(self.model, (seen - self.mean) / self.std).float().flatten(1), dim=1)


def block_after_the_middle(denoiser: nn.Module) -> nn.Module:
    """What a forward calls when half of it is done. Raises ValueError for a denoiser without blocks."""
    ups = getattr(denoiser, "up_blocks", None)
    if isinstance(ups, nn.ModuleList):
        return ups[0]
    stacks = [child for child in denoiser.children() if isinstance(child, nn.ModuleList) and len(child) > 1]
    if not stacks:
        raise ValueError(f"{type(denoiser).__name__} has no stack of blocks to take features of; give --encoder a path")
    longest = max(stacks, key=len)
    return longest[len(longest) // 2]


@contextlib.contextmanager
def _caught(block: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a forward ends with _FoundError where `block` begins; the list then has what it was given."""
    found: list[Tensor] = []

    def catch(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = named.get("hidden_states", named.get("x"))
        found.append(arguments[0] if given is None else given)
        raise _FoundError

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def make_features(names: tuple[str, ...], base: Base, device: torch.device) -> list[Features]:
    """The encoders of a run by name, `denoiser` or the path of a model."""
    return [DenoiserFeatures(base) if name == DENOISER else TowerFeatures(base, name, device) for name in names]
