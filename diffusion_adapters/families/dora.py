"""DoRA: weight-decomposed low-rank adaptation, a LoRA of the direction and a magnitude for each row.

Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen 2024, https://arxiv.org/abs/2402.09353, equation 5.

ΔW = diag(m / n) (W + s B A) − W with B (out, rank), A (rank, in), m (out), and n (out) the norms of the rows of
W + s B A; s = alpha / rank. The norms come from ‖w + s b A‖² = ‖w‖² + 2 s b (A w) + s² b A Aᵀ bᵀ for each row w of W
and b of B, without a dense ΔW: A w is what the layer gives for the rows of A.
Starts at W: B = 0, A uniform within ± 1 / sqrt(in), m the norms of the rows of W.
Trains rank (in + out) + out values per projection.

Differs from the paper: the norms are of rows, as in the authors' code, and have a gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, ForeignLayer, check_rank
from ..linalg import matrix
from ..options import option

MAGNITUDES = ("magnitude", "dora_scale")


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(AdapterConfig):
    rank: int = option(4, "inner width of the update, at most min(in, out)", ge=1)
    alpha: float = option(4.0, "the update is multiplied by alpha / rank", gt=0)


@FAMILIES.register("dora")
class DoRA(Adapter):
    Config = DoRAConfig
    reads_weight = True
    foreign = tuple(frozenset({"down", "up", name}) for name in MAGNITUDES)

    def __init__(self, weight: Tensor, config: DoRAConfig) -> None:
        super().__init__(weight, config)
        check_rank(config.rank, weight)
        self.scaling = config.alpha / config.rank
        self.A = nn.Parameter(torch.empty(config.rank, self.in_features))
        self.B = nn.Parameter(torch.zeros(self.out_features, config.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.squares = nn.Buffer(weight.detach().square().sum(dim=1).float(), persistent=False)
        self.m = nn.Parameter(self.squares.sqrt())

    def _gain(self, projected: Tensor) -> Tensor:
        """m / n (out), given A Wᵀ (rank, out)."""
        up, gram = self.scaling * self.B, self.A @ self.A.t()
        squares = self.squares + 2 * (up * projected.t()).sum(dim=1) + ((up @ gram) * up).sum(dim=1)
        return self.m / squares.clamp_min(1e-12).sqrt()

    def delta_weight(self, weight: Tensor) -> Tensor:
        gain = self._gain(self.A @ weight.t())[:, None]
        return (gain - 1) * weight + gain * self.scaling * (self.B @ self.A)

    def forward(self, x: Tensor, y: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        bias, down = linear(x.new_zeros(1, self.in_features)), self.A.to(x)
        gain = self._gain((linear(down) - bias).float()).to(x)
        low_rank = F.linear(F.linear(x, down), (self.scaling * self.B).to(x))
        return (gain - 1) * (y - bias) + gain * low_rank

    @classmethod
    def from_foreign(cls, layer: ForeignLayer) -> tuple[DoRAConfig, dict[str, Tensor]]:
        down, up = matrix(layer["down"]), layer.take(matrix(layer["up"]))
        rank, (size, width) = len(down), layer.shape
        name = next(name for name in MAGNITUDES if name in layer)
        m = layer[name]
        if name == "dora_scale" and m.ndim > 1 and len(m) == 1 and m.shape[1] > 1:
            raise ValueError(f"dora_scale has shape {tuple(m.shape)}: magnitudes of columns are not supported")
        tensors = {"A": layer.check("down", down, rank, width), "B": layer.check("up", up, size, rank)}
        tensors["m"] = layer.check(name, layer.take(m.flatten()), size)
        return cls.Config(rank=rank, alpha=layer.alpha(rank)), tensors
