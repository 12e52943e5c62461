"""LoHa: low-rank adaptation by a Hadamard product.

Hyeon-Woo, Ye-Bin, Oh 2022, https://arxiv.org/abs/2108.06098, proposition 1; for diffusion models
Yeh, Hsieh, Gao, Yang, Oh, Gong 2024, https://arxiv.org/abs/2309.14859.

ΔW = s (B1 A1) ∘ (B2 A2) with B1, B2 (out, rank) and A1, A2 (rank, in), entry by entry; s = alpha / rank. It is low rank
itself, with rank² columns B1_i ∘ B2_j and rows A1_i ∘ A2_j, and is evaluated as such.
Starts at W: B2 = 0, A1 and A2 normal, B1 normal with a deviation of 0.1.
Trains 2 rank (in + out) values per projection.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, ForeignLayer, check_rank
from ..linalg import matrix, narrowed, patched
from ..options import option

PAIRS = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})


@dataclass(frozen=True, kw_only=True)
class LoHaConfig(AdapterConfig):
    rank: int = option(4, "inner width of the update, at most min(in, out)", ge=1)
    alpha: float = option(4.0, "the update is multiplied by alpha / rank", gt=0)


@FAMILIES.register("loha")
class LoHa(Adapter):
    Config = LoHaConfig
    foreign = (PAIRS, PAIRS | {"hada_t1", "hada_t2"})

    def __init__(self, weight: Tensor, config: LoHaConfig) -> None:
        super().__init__(weight, config)
        check_rank(config.rank, weight)
        self.scaling = config.alpha / config.rank
        self.A1 = nn.Parameter(torch.randn(config.rank, self.in_features))
        self.A2 = nn.Parameter(torch.randn(config.rank, self.in_features))
        self.B1 = nn.Parameter(0.1 * torch.randn(self.out_features, config.rank))
        self.B2 = nn.Parameter(torch.zeros(self.out_features, config.rank))

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.scaling * (self.B1 @ self.A1) * (self.B2 @ self.A2)

    def factors(self) -> tuple[Tensor, float, Tensor]:
        up = self.B1[:, :, None] * self.B2[:, None, :]
        down = self.A1[:, None, :] * self.A2[None, :, :]
        return up.flatten(1), self.scaling, down.flatten(0, 1)

    @classmethod
    def from_foreign(cls, layer: ForeignLayer) -> tuple[LoHaConfig, dict[str, Tensor]]:
        tensors, rank = {}, len(layer["hada_w1_b"])
        for i in "12":
            up, down = layer[f"hada_w{i}_a"], matrix(layer[f"hada_w{i}_b"])
            if "hada_t1" in layer:
                up, down = up.t(), patched(layer[f"hada_t{i}"], down, layer.shape[1])
            up = layer.check(f"hada_w{i}_a", layer.take(up), layer.shape[0], rank)
            down = layer.check(f"hada_w{i}_b", down, rank, layer.shape[1])
            tensors[f"B{i}"], tensors[f"A{i}"] = narrowed(up, down)
        own = len(tensors["A1"])
        return cls.Config(rank=own, alpha=layer.alpha(rank) * own / rank), tensors
