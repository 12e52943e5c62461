"""The contract of an adapter family: what one file in `families/` must define, and what it may."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .options import Options
from .registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig(Options):
    """Hyperparameters of a family. Each field is declared with `option(default, help, bounds)`."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the parts that each have a dial, of a family that has such."""
        return ()


@dataclasses.dataclass(frozen=True)
class ForeignLayer:
    """What another program's file holds of one layer: its tensors by the names of `formats.tensors`.

    `shape`: (out, in) of the layer here, a convolution as a matrix of patches. `rows`: where this layer is a part of
    the one that the file is about, the runs of rows that are it. `settings`: what the file says beside its tensors.
    """

    tensors: Mapping[str, Tensor]
    shape: tuple[int, int]
    rows: tuple[tuple[int, int], ...] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].float()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def alpha(self, rank: int) -> float:
        """The numerator of the scale alpha / rank; without one the scale is 1."""
        if "alpha" in self.tensors:
            self.check("alpha", self.tensors["alpha"].flatten(), 1)
            return float(self.tensors["alpha"].float())
        return rank * float(self.settings.get("scale", 1.0))

    def take(self, value: Tensor) -> Tensor:
        """The rows of `value` that are of this layer. Raises ValueError if it has too few."""
        if self.rows is None:
            return value
        if len(value) < max(stop for _, stop in self.rows):
            raise ValueError(f"its {len(value)} rows are fewer than those of the layers that it is made of")
        return torch.cat([value[start:stop] for start, stop in self.rows])

    def check(self, name: str, value: Tensor, *shape: int) -> Tensor:
        """`value`. Raises ValueError unless it is of this shape."""
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)} instead of {shape}")
        return value


class Adapter(nn.Module):
    """One adapter on one linear projection y = W x + b, W (out, in). W is frozen; ΔW = 0 after `__init__`.

    A family says what it adds in up to three ways, whose sum is its effect on the projection; W + ΔW is the whole:

    - `factors()`: (B, c, A) with ΔW = B diag(c) A. Evaluated together with those of other adapters, exported exactly.
    - `input_delta(x)`: (T − I) x, of a family that multiplies W by T on the input side: W T = W + W (T − I).
    - `forward(x, y, linear)`: anything else; it may call `linear` and must never build an (out, in) tensor.

    The last two compute in the dtype and on the device of `x`; a family casts its own values by `value.to(x)`.
    """

    Config: ClassVar[type[AdapterConfig]]
    reads_weight: ClassVar[bool] = False
    """Whether `__init__` or `delta_weight` uses the numbers of W; if not, a meta tensor of its shape will do."""
    learning_rate: ClassVar[float] = 1e-4
    """Learning rate of AdamW to begin with."""
    foreign: ClassVar[tuple[frozenset[str], ...]] = ()
    """The sets of tensors, beside `alpha`, by which a layer of another program's file is of this family."""

    def __init__(self, weight: Tensor, config: Any) -> None:
        """`weight`: the frozen W, (out, in), fp32, on any device; on `meta` only shapes count. Raises ValueError."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.config = config
        self.transforms_input = type(self).input_delta is not Adapter.input_delta
        self.adds_output = type(self).forward is not Adapter.forward

    @classmethod
    def reads(cls, config: Any) -> bool:
        """`reads_weight` with these options."""
        return cls.reads_weight

    def at(self, dials: Mapping[str, float]) -> Adapter:
        """This adapter, with the very same parameters, and its domains times `dials`; one not named is off."""
        return self

    def delta_weight(self, weight: Tensor) -> Tensor:
        """ΔW (out, in) in fp32 for the frozen `weight` W. Pure: the truth that fuse, export, merge and tests use."""
        factors = self.low_rank()
        if factors is None:
            raise NotImplementedError(f"{type(self).__name__} has no factors() and must define delta_weight(weight)")
        up, down = factors
        return up @ down

    def factors(self) -> tuple[Tensor, Tensor | float, Tensor] | None:
        """B (out, rank), c (rank,) or a number, A (rank, in), differentiable: the low-rank part of ΔW is B diag(c) A.

        Scales belong into c, which multiplies the few values between the two matrix products. None if there is no part.
        """
        return None

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """`factors()` with c in B: (B, A) of shapes (out, rank) and (rank, in). None if none."""
        factors = self.factors()
        return None if factors is None else (factors[0] * factors[1], factors[2])

    def input_delta(self, x: Tensor) -> Tensor:
        """(T − I) x, (..., in) -> (..., in)."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        """The part of x ΔWᵀ that is neither low rank nor an input transform, (..., in) -> (..., out), y = linear(x)."""
        raise NotImplementedError

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, each with its own `lr`."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]

    def penalty(self) -> Tensor | None:
        """A scalar that training adds to its loss, or None."""
        return None

    @classmethod
    def from_tensors(cls, weight: Tensor, config: AdapterConfig, tensors: dict[str, Tensor]) -> Self:
        """An adapter from the tensors of a file. Raises ValueError for one that is missing, unexpected or misshapen."""
        adapter = cls(weight, config)
        adapter.check_tensors(tensors)
        adapter.load_state_dict(tensors)
        return adapter

    @classmethod
    def from_foreign(cls, layer: ForeignLayer) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """Options and tensors that give the same ΔW. Raises ValueError for one that is misshapen."""
        raise NotImplementedError

    def check_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Raise ValueError unless `tensors` has exactly the names and shapes of this adapter's own state."""
        own = self.state_dict()
        problems = [f"missing {name}" for name in own if name not in tensors]
        problems += [f"unexpected {name}" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
            for name, value in own.items()
            if name in tensors and tensors[name].shape != value.shape
        ]
        if problems:
            raise ValueError("; ".join(problems))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """What is known of an adapter besides its numbers; all of it stands in the header of its file."""

    family: str
    config: AdapterConfig
    target_modules: tuple[str, ...] | None = None
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trigger: str | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of a merged adapter: method, options, and name, family, weight and sha256 of each source."""


FAMILIES: Registry[type[Adapter]] = Registry("adapter family", "diffusion_adapters.families")


def check_rank(rank: int, weight: Tensor) -> None:
    """Raise ValueError if `rank` exceeds min(out, in) of `weight`."""
    if rank > min(weight.shape):
        raise ValueError(f"rank {rank} exceeds min(out, in) = {min(weight.shape)}")


def meta_like(weight: Tensor) -> Tensor:
    """A tensor of the shape of `weight` that holds no numbers."""
    return torch.empty(weight.shape, device="meta")
