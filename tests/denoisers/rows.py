"""What a row of the zoo is, and the few words its columns are written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[nn.Module], dict[str, Any]]

TEXT = 12
"""Width of the text embeddings: unlike inner widths, so that a transposed product cannot pass unseen."""
PROMPT = {"encoder_hidden_states": (2, 5, TEXT)}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
TIME = torch.tensor([0.3, 0.7])
"""Diffusion time of two samples, in [0, 1]."""
STEP = TIME * 1000
"""The same in training steps."""


@dataclass(frozen=True)
class Denoiser:
    """A tiny configuration of one diffusers class. `inputs(model)` draws the keyword arguments of a forward pass.

    `prepare(model)` completes a model that cannot run alone; `needs` names a package without which it does not run.
    """

    name: str
    cls: str
    config: dict[str, Any]
    inputs: Inputs
    prepare: Callable[[nn.Module], None] | None = None
    needs: str = ""


def given(**declared: Any) -> Inputs:
    """Inputs as declared: a tuple of integers is the shape of a normal tensor, functions are called, the rest stays."""

    def draw(model: nn.Module) -> dict[str, Any]:
        return {name: _value(value) for name, value in declared.items()}

    return draw


def _value(declared: Any) -> Any:
    if isinstance(declared, tuple) and all(isinstance(size, int) for size in declared):
        return torch.randn(declared)
    if isinstance(declared, dict):
        return {name: _value(value) for name, value in declared.items()}
    return declared() if callable(declared) else declared


def grid(*sizes: int) -> Tensor:
    """Every position of a grid, last axis fastest, `(product of sizes, number of axes)`."""
    return torch.cartesian_prod(*map(torch.arange, sizes)).reshape(-1, len(sizes)).float()


def ones(*sizes: int) -> Callable[[], Tensor]:
    """A mask that hides nothing."""
    return lambda: torch.ones(sizes)


def listed(*shapes: tuple[int, ...]) -> Callable[[], list[Tensor]]:
    """One normal tensor per shape, as a list (models that take samples of different sizes)."""
    return lambda: [torch.randn(shape) for shape in shapes]


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A configuration less the keys that a relative of the class does not take."""
    return {key: value for key, value in config.items() if key not in keys}
