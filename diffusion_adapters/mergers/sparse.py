"""What the methods that prune ΔW have in common: PEFT's functions on the dense matrices, and the option `density`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..merge import Merger, MergerConfig
from ..options import option
from ..reduce import Factors
from ..sources import Delta


@dataclass(frozen=True, kw_only=True)
class SparseConfig(MergerConfig):
    """How much of each ΔW is kept."""

    density: float = option(0.5, "share of the numbers of each ΔW that is kept", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class SignConfig(SparseConfig):
    """The same, and which sign wins."""

    majority_sign_method: str = option(
        "total", "which sign wins at a number: of the sum, or of most adapters", choices=("total", "frequency")
    )


@dataclass(frozen=True, kw_only=True)
class RandomConfig(SparseConfig):
    """The same, and the seed."""

    seed: int = option(0, "seed of what is dropped", ge=0)


class Sparse(Merger):
    """Calls the function of `peft.utils.merge_utils` that is named as the method."""

    Config = SparseConfig
    function = ""

    def merge(self, deltas: Sequence[Delta], where: str) -> Factors:
        try:
            from peft.utils import merge_utils
        except ImportError as error:
            raise ValueError(f"the method {self.function} needs the package peft ({error}): pip install peft") from None
        settings: dict[str, Any] = self.config.as_dict()
        not_of_peft = (*MergerConfig().as_dict(), "seed")
        settings = {name: value for name, value in settings.items() if name not in not_of_peft}
        tensors = [delta.full().cpu() for delta in deltas]
        weights = torch.tensor([delta.weight for delta in deltas])
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", "The density 1")
            if isinstance(self.config, RandomConfig):
                torch.manual_seed(_seed(self.config.seed, where))
            merged: Tensor = getattr(merge_utils, self.function)(tensors, weights, **settings)
        return self.cut(merged.to(deltas[0].full().device), deltas)


def _seed(seed: int, where: str) -> int:
    """Another number for each projection, the same in whatever order they come."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{where}".encode()).digest()[:8], "little") >> 1
