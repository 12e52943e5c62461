"""Where image and text stand in the token sequences of a denoiser, and the image's grid."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

TEXT_FIRST = (
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
)
"""Denoisers some of whose attention works on one sequence: the text, then the image."""
IMAGE_ONLY = (
    "HunyuanDiT2DModel",
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "UNet2DConditionModel",
)
"""Denoisers whose attention has text and image apart, or the text as another input."""

IMAGE, TEXT, JOINT = "image", "text", "joint"


def stream(denoiser: nn.Module, attention: nn.Module, projection: str) -> str:
    """What the tokens are that a projection works on: of the image, of the text, or of both in one sequence."""
    name = projection.partition(".")[0]
    joint = getattr(attention, "add_k_proj", None) is not None
    if name.startswith("add_") or name == "to_add_out":
        return TEXT
    if name in ("to_k", "to_v", "to_kv") and not joint and getattr(attention, "is_cross_attention", False):
        return TEXT
    return JOINT if type(denoiser).__name__ in TEXT_FIRST and not joint else IMAGE


def outside_stream(denoiser: str, path: str) -> str:
    """The same of a layer outside attention, by the class of the denoiser and the path of the layer."""
    if any("context" in part or part.startswith("txt") or "text" in part for part in path.split(".")):
        return TEXT
    return JOINT if denoiser in TEXT_FIRST and path.startswith("single_") else IMAGE


class Layout:
    """The token grid of the forward that is running, and how its sequences are laid out."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.kind = type(denoiser).__name__
        patch = getattr(getattr(denoiser, "config", None), "patch_size", None)
        self.patch = patch if isinstance(patch, int) else 1
        names = list(inspect.signature(denoiser.forward).parameters)
        self.clock = next((name for name in ("timestep", "timesteps", "t") if name in names), "timestep")
        self._places = {name: names.index(name) for name in (self.clock, "img_ids", "img_shapes") if name in names}
        self._first = names[0]
        self.grid: tuple[int, int] | None = None
        self.total = 0  # image tokens at the finest grid, with those of reference images
        self._known: dict[int, tuple[int, int]] = {}  # number of packed tokens -> grid, for compiled forwards

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An argument of the denoiser's forward by name, None if it was not given."""
        if name in kwargs:
            return kwargs[name]
        place = self._places.get(name, len(args))
        return args[place] if place < len(args) else None

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the grid from the arguments of the denoiser's forward."""
        latents = args[0] if args else kwargs[self._first]
        if not isinstance(latents, Tensor):
            self.grid = None
            return
        if latents.ndim == 4:
            self.grid = (math.ceil(latents.shape[2] / self.patch), math.ceil(latents.shape[3] / self.patch))
            self.total = self.grid[0] * self.grid[1]
            return
        self.total = latents.shape[1]
        if torch.compiler.is_compiling():
            self.grid = self._known.get(latents.shape[1])
        else:
            self.grid = self._packed(args, kwargs)
            if self.grid is not None:
                self._known[latents.shape[1]] = self.grid

    def _packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
        shapes, ids = self.argument("img_shapes", args, kwargs), self.argument("img_ids", args, kwargs)
        if shapes is not None:
            first = shapes[0]
            while not isinstance(first[-1], int):
                first = first[0]
            return int(first[-2]), int(first[-1])
        if ids is None:
            return None
        places = ids.reshape(-1, ids.shape[-1])
        own = places[places[:, 0] == 0]  # reference images have another number there
        rows, columns = own[:, 1:3].amax(0).tolist()
        return int(rows) + 1, int(columns) + 1

    def level(self, tokens: int) -> tuple[tuple[int, int], int] | None:
        """The grid that `tokens` image tokens form, and how many times it is halved against the finest one."""
        if self.grid is None:
            return None
        for halved in range(8):
            rows, columns = (math.ceil(size / 2**halved) for size in self.grid)
            if rows * columns == tokens:
                return (rows, columns), halved
        return None

    def image(self, path: str, tokens: int, kind: str) -> tuple[slice, tuple[int, int], int] | None:
        """Where in a sequence of `tokens` the image is, its grid and how often it is halved; None for text.

        Raises RuntimeError where it is not known: a guess would change the wrong tokens without a word.
        """
        if kind == TEXT:
            return None
        found = self.level(tokens)
        if kind == IMAGE and found is not None:
            return slice(None), *found
        if self.grid is not None and self.kind in TEXT_FIRST + IMAGE_ONLY:
            own = self.grid[0] * self.grid[1]
            text = tokens - self.total
            if kind == JOINT and text >= 0 and self.kind in TEXT_FIRST:
                return slice(text, text + own), self.grid, 0
            if kind == IMAGE and tokens > own:  # reference images come behind
                return slice(0, own), self.grid, 0
        if self.grid is None and torch.compiler.is_compiling():
            raise RuntimeError("a compiled forward cannot read the grid of packed latents: run one before compiling")
        raise RuntimeError(
            f"{path}: cannot tell which of its {tokens} tokens are the image (grid {self.grid}); masks and bands are "
            f"known for {', '.join(TEXT_FIRST + IMAGE_ONLY)}, not for {self.kind} here"
        )
