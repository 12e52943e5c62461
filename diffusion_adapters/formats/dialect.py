"""What a dialect of adapter files must say: whose layer a key is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..registry import Registry

DENOISER = "denoiser"
"""The component of a layer of which a file says no more than that it is none of a text encoder."""
Settings = Callable[[str, str], Mapping[str, Any]]
"""What a file says of one layer beside its tensors, by component and module."""


class Dialect:
    """One way of naming layers; the docstring says whose, and stands in what `inspect_adapter` tells."""

    @staticmethod
    def place(module: str) -> tuple[str, str] | None:
        """Component and name of the layer that the front of a key names, None if it is of another dialect."""
        raise NotImplementedError

    @staticmethod
    def settings(path: Path, metadata: Mapping[str, str]) -> Settings:
        """What stands beside the tensors. Raises ValueError for what would make their meaning another."""
        return lambda component, module: {}


DIALECTS: Registry[type[Dialect]] = Registry("dialect", "diffusion_adapters.formats")
