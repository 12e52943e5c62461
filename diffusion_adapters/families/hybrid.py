"""Hybrid: several domains in one adapter, each a part with a dial of its own, mixed by learned coefficients.

Li, Liu, Xia, Lin, Zheng, Yang, Wang, Zhong, Ren, He 2023, https://arxiv.org/abs/2310.19378 (ICLR 2024).

ΔW = Σ_k dial_k c_k D_k over K domains: D_k (out, in) is the ΔW of an adapter of any other family with its own options,
c (K) is trained. A dial is 1 unless `domain_weights` says otherwise, and is in no file; one alone gives c_k D_k, the
domain as the hybrid has it. Parts of one family and options have the same frozen buffers, once in the file.
Starts at W: c = 1, each part at its own start.
Trains K + Σ part_values values per projection.

Differs from the paper: it adapts one generator as a whole, by a loss on all domains at once; here each domain has its
part, to be dialed, trained by its own pictures too, or taken from an adapter that exists. The loss is not in this file.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig
from ..options import Table, option
from ..parts import Kind, Parts, below, check_parts, read_kind


@dataclass(frozen=True, kw_only=True)
class HybridConfig(AdapterConfig):
    parts: Table = option(  # noqa: RUF009
        Table(first={"family": "lora"}, second={"family": "lora"}), "family and options of each domain, by its name"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "parts", check_parts(self.parts))

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def part_kinds(self) -> dict[str, Kind]:
        return {domain: read_kind(given) for domain, given in self.parts.items()}


@FAMILIES.register("hybrid")
class Hybrid(Adapter):
    Config = HybridConfig

    def __init__(self, weight: Tensor, config: HybridConfig, tensors: Mapping[str, Any] | None = None) -> None:
        """`tensors`: those of each part by domain, if they are not new."""
        super().__init__(weight, config)
        self.domains, self.K = config.domains, len(config.domains)
        self.coefficients = nn.Parameter(torch.ones(self.K))
        self.parts = Parts(weight, config.part_kinds(), tensors)
        self.part_values = [sum(value.numel() for value in part.parameters()) for part in self.parts.values()]
        self._dial(dict.fromkeys(self.domains, 1.0))

    def _dial(self, dials: Mapping[str, float]) -> None:
        self.dials = [dials.get(domain, 0.0) for domain in self.domains]
        self.transforms_input = any(part.transforms_input for part, _ in self._terms())
        self.adds_output = any(part.adds_output for part, _ in self._terms())

    def at(self, dials: Mapping[str, float]) -> Self:
        made = copy.copy(self)  # of a module: its parameters are the same
        made._dial(dials)
        return made

    def _terms(self) -> list[tuple[Adapter, Tensor]]:
        """The parts whose dial is not 0, and what each is multiplied by."""
        found = zip(self.domains, self.coefficients, self.dials, strict=True)
        return [(self.parts[domain], c * dial) for domain, c, dial in found if dial != 0]

    @classmethod
    def reads(cls, config: Any) -> bool:
        return any(FAMILIES[family].reads(own) for family, own in config.part_kinds().values())

    def delta_weight(self, weight: Tensor) -> Tensor:
        return sum((gain * part.delta_weight(weight) for part, gain in self._terms()), torch.zeros_like(weight).float())

    def factors(self) -> tuple[Tensor, Tensor, Tensor] | None:
        made = [(part.factors(), gain) for part, gain in self._terms()]  # a walrus here cannot be compiled
        found = [(*factors, gain) for factors, gain in made if factors is not None]
        if not found:
            return None
        return (
            torch.cat([up for up, *_ in found], dim=1),
            torch.cat([(gain * core).expand(len(down)) for _, core, down, gain in found]),
            torch.cat([down for _, _, down, _ in found]),
        )

    def input_delta(self, x: Tensor) -> Tensor:
        found = [gain.to(x) * part.input_delta(x) for part, gain in self._terms() if part.transforms_input]
        return sum(found[1:], found[0])

    def forward(self, x: Tensor, y: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        found = [gain.to(x) * part(x, y, linear) for part, gain in self._terms() if part.adds_output]
        return sum(found[1:], found[0])

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        groups = [{"params": [self.coefficients], "lr": learning_rate}]
        for part in map(self.parts.__getitem__, self.domains):
            groups += part.parameter_groups(learning_rate * part.learning_rate / self.learning_rate)
        return groups

    def penalty(self) -> Tensor | None:
        found = [value for part in map(self.parts.__getitem__, self.domains) if (value := part.penalty()) is not None]
        return torch.stack(found).sum() if found else None

    def check_tensors(self, tensors: dict[str, Tensor]) -> None:
        own = self.parts.own_buffers()
        super().check_tensors({name: v for name, v in tensors.items() if name.removeprefix("parts.") not in own})

    @classmethod
    def from_tensors(cls, weight: Tensor, config: Any, tensors: dict[str, Tensor]) -> Self:
        adapter = cls(weight, config, {domain: below(tensors, f"parts.{domain}.") for domain in config.domains})
        adapter.check_tensors(tensors)
        adapter.load_state_dict(tensors)
        return adapter
