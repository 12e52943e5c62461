"""LoRA: low-rank adaptation, the baseline.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen 2021, https://arxiv.org/abs/2106.09685, equation 3.

ΔW = s B A with B (out, rank), A (rank, in); s = alpha / rank, or alpha / sqrt(rank) with `rslora`
(Kalajdzievski 2023, https://arxiv.org/abs/2312.03732). With `lora_plus_ratio` B learns that many times faster than A
(LoRA+: Hayou, Ghosh, Yu 2024, https://arxiv.org/abs/2402.12354; 16 in the paper, with a smaller learning rate).
Starts at W: B = 0, A uniform within ± 1 / sqrt(in).
Trains rank (in + out) values per projection.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, ForeignLayer, check_rank
from ..linalg import matrix, narrowed, patched
from ..options import option


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(AdapterConfig):
    rank: int = option(4, "inner width of the update, at most min(in, out)", ge=1)
    alpha: float = option(4.0, "the update is multiplied by alpha / rank", gt=0)
    rslora: bool = option(False, "multiply by alpha / sqrt(rank) instead, which keeps high ranks learning")
    lora_plus_ratio: float = option(1.0, "learning rate of B over that of A, 16 in LoRA+", gt=0)


@FAMILIES.register("lora")
class LoRA(Adapter):
    Config = LoRAConfig
    foreign = (frozenset({"down", "up"}), frozenset({"down", "up", "mid"}), frozenset({"diff"}))

    def __init__(self, weight: Tensor, config: LoRAConfig) -> None:
        super().__init__(weight, config)
        check_rank(config.rank, weight)
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        self.A = nn.Parameter(torch.empty(config.rank, self.in_features))
        self.B = nn.Parameter(torch.zeros(self.out_features, config.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, float, Tensor]:
        return self.B, self.scaling, self.A

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        faster = learning_rate * self.config.lora_plus_ratio
        return [{"params": [self.A], "lr": learning_rate}, {"params": [self.B], "lr": faster}]

    @classmethod
    def from_foreign(cls, layer: ForeignLayer) -> tuple[LoRAConfig, dict[str, Tensor]]:
        if "diff" in layer:  # a whole ΔW is a LoRA of full rank
            delta = layer.check("diff", layer.take(matrix(layer["diff"])), *layer.shape)
            up, down = narrowed(delta, torch.eye(layer.shape[1]))
            return cls.Config(rank=len(down), alpha=float(len(down))), {"A": down, "B": up}
        down, up = matrix(layer["down"]), layer.take(matrix(layer["up"]))
        rank = len(down)
        if "mid" in layer:
            down = patched(layer["mid"], down, layer.shape[1])
        layer.check("down", down, rank, layer.shape[1])
        layer.check("up", up, layer.shape[0], rank)
        if layer.rows is not None and up.any():  # a part of a layer may have no use for a part of its A
            up, down = up[:, up.any(dim=0)], down[up.any(dim=0)]
        up, down = narrowed(up, down)
        return cls.Config(rank=len(down), alpha=layer.alpha(rank) * len(down) / rank), {"A": down, "B": up}
