"""GLoRA: generalized low-rank adaptation, a LoRA of the weight and one of the input.

Chavan, Liu, Gupta, Xing, Shen 2023, https://arxiv.org/abs/2306.07967, in the form that LyCORIS gave it.

ΔW = s (W A1 A2 + B1 B2) with W (out, in), A1 (in, rank), A2 (rank, in), B1 (out, rank), B2 (rank, in), and
s = alpha / rank.
Starts at W: A2 = B2 = 0, A1 and B1 uniform within ± 1 / sqrt(rank).
Trains rank (3 in + out) values per projection.

Differs from the paper: no change of the bias, no prompt, and no search for the parts that each layer gets.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, ForeignLayer, check_rank
from ..linalg import matrix
from ..options import option

NAMES = {"A1": "glora_a1", "A2": "glora_a2", "B1": "glora_b1", "B2": "glora_b2"}


@dataclass(frozen=True, kw_only=True)
class GLoRAConfig(AdapterConfig):
    rank: int = option(4, "inner width of the update, at most min(in, out)", ge=1)
    alpha: float = option(4.0, "the update is multiplied by alpha / rank", gt=0)


@FAMILIES.register("glora")
class GLoRA(Adapter):
    Config = GLoRAConfig
    foreign = (frozenset(NAMES.values()),)

    def __init__(self, weight: Tensor, config: GLoRAConfig) -> None:
        super().__init__(weight, config)
        check_rank(config.rank, weight)
        self.scaling = config.alpha / config.rank
        self.A1 = nn.Parameter(torch.empty(self.in_features, config.rank))
        self.A2 = nn.Parameter(torch.zeros(config.rank, self.in_features))
        self.B1 = nn.Parameter(torch.empty(self.out_features, config.rank))
        self.B2 = nn.Parameter(torch.zeros(config.rank, self.in_features))
        for value in (self.A1, self.B1):
            nn.init.kaiming_uniform_(value, a=math.sqrt(5))

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.scaling * (weight @ self.A1 @ self.A2 + self.B1 @ self.B2)

    def factors(self) -> tuple[Tensor, float, Tensor]:
        return self.B1, self.scaling, self.B2

    def input_delta(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.A2.to(x)), (self.scaling * self.A1).to(x))

    @classmethod
    def from_foreign(cls, layer: ForeignLayer) -> tuple[GLoRAConfig, dict[str, Tensor]]:
        rank, (size, width) = len(layer["glora_a2"]), layer.shape
        tensors = {ours: matrix(layer[name]) for ours, name in NAMES.items()}
        tensors["B1"] = layer.take(tensors["B1"])
        for ours, shape in (("A1", (width, rank)), ("A2", (rank, width)), ("B1", (size, rank)), ("B2", (rank, width))):
            layer.check(NAMES[ours], tensors[ours], *shape)
        return cls.Config(rank=rank, alpha=layer.alpha(rank)), tensors
