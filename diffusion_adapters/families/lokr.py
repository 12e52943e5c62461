"""LoKr: low-rank adaptation by a Kronecker product.

Edalati, Tahaei, Kobyzev, Nia, Clark, Rezagholizadeh 2022, https://arxiv.org/abs/2212.10650; for diffusion models
Yeh, Hsieh, Gao, Yang, Oh, Gong 2024, https://arxiv.org/abs/2309.14859.

ΔW = s C ⊗ (B A) with C (p, q), B (out / p, rank), A (rank, in / q); s = alpha / rank. p and q are the largest divisors
of out and in up to `out_factor` and `in_factor` that leave room for the rank. An input is a matrix (q, in / q): two
small products, no ΔW. With `full_matrix` one matrix D (out / p, in / q) stands in place of B A.
Starts at W: B or D = 0, A uniform within ± 1 / sqrt(in / q), C normal.
Trains p q + rank (whole / p + in / q) values per projection, or p q + whole in / (p q) with full_matrix.

`before` and `after` are rows of a larger ΔW, of `whole` rows, that this layer was cut out of.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, ForeignLayer, check_rank
from ..linalg import largest_divisor, matrix, narrowed, patched
from ..options import option

LEFT = (frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}))
RIGHT = (
    frozenset({"lokr_w2"}),
    frozenset({"lokr_w2_a", "lokr_w2_b"}),
    frozenset({"lokr_t2", "lokr_w2_a", "lokr_w2_b"}),
)


@dataclass(frozen=True, kw_only=True)
class LoKrConfig(AdapterConfig):
    rank: int = option(4, "inner width of the right factor, at most min(in, out)", ge=1)
    alpha: float = option(4.0, "the update is multiplied by alpha / rank", gt=0)
    out_factor: int = option(8, "largest number of rows of the left factor", ge=1)
    in_factor: int = option(8, "largest number of columns of the left factor", ge=1)
    full_matrix: bool = option(False, "a right factor of full rank")
    before: int = option(0, "rows of a larger update before those of this layer", ge=0)
    after: int = option(0, "rows of a larger update after those of this layer", ge=0)


@FAMILIES.register("lokr")
class LoKr(Adapter):
    Config = LoKrConfig
    foreign = tuple(left | right for left in LEFT for right in RIGHT)

    def __init__(self, weight: Tensor, config: LoKrConfig) -> None:
        super().__init__(weight, config)
        self.whole = config.before + self.out_features + config.after
        check_rank(config.rank, weight)
        self.p = largest_divisor(self.whole, min(config.out_factor, self.whole // config.rank))
        self.q = largest_divisor(self.in_features, min(config.in_factor, self.in_features // config.rank))
        rows, columns = self.whole // self.p, self.in_features // self.q
        self.scaling = config.alpha / config.rank
        self.C = nn.Parameter(torch.randn(self.p, self.q))
        if config.full_matrix:
            self.D = nn.Parameter(torch.zeros(rows, columns))
            return
        self.A = nn.Parameter(torch.empty(config.rank, columns))
        self.B = nn.Parameter(torch.zeros(rows, config.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def delta_weight(self, weight: Tensor) -> Tensor:
        right = self.D if self.config.full_matrix else self.B @ self.A
        delta = self.scaling * torch.kron(self.C, right)
        return delta[self.config.before : self.config.before + self.out_features]

    def forward(self, x: Tensor, y: Tensor, linear: object) -> Tensor:
        rows = x.unflatten(-1, (self.q, -1))
        if self.config.full_matrix:
            rows = F.linear(rows, self.D.to(x))
        else:
            rows = F.linear(F.linear(rows, self.A.to(x)), self.B.to(x))
        whole = ((self.scaling * self.C).to(x) @ rows).flatten(-2)
        return whole[..., self.config.before : self.config.before + self.out_features]

    @classmethod
    def from_foreign(cls, layer: ForeignLayer) -> tuple[LoKrConfig, dict[str, Tensor]]:
        left, rank = layer["lokr_w1"] if "lokr_w1" in layer else layer["lokr_w1_a"] @ layer["lokr_w1_b"], 0
        if "lokr_w1_b" in layer:
            rank = len(layer["lokr_w1_b"])
        columns = layer.shape[1] // left.shape[1]
        if "lokr_w2" in layer:
            tensors = {"D": matrix(layer["lokr_w2"])}
        else:
            up, down = layer["lokr_w2_a"], matrix(layer["lokr_w2_b"])
            rank = len(down)
            if "lokr_t2" in layer:
                up, down = up.t(), patched(layer["lokr_t2"], down, columns)
            up, down = narrowed(up, down)
            tensors = {"B": up, "A": down}
        rows = len(next(iter(tensors.values())))
        whole = len(left) * rows
        if layer.shape[1] != left.shape[1] * tensors.get("D", tensors.get("A", left)).shape[1]:
            raise ValueError(f"its columns are not {layer.shape[1]}")
        runs = layer.rows or ((0, whole),)
        start, stop = runs[0]
        if len(runs) > 1 or stop - start != layer.shape[0] or stop > whole:
            raise ValueError(f"rows {runs} of its {whole} are not the {layer.shape[0]} of this layer")
        # The rows that are cut off with whole rows of C are left away.
        first, last = start // rows, -(-stop // rows)
        scale = layer.alpha(rank) / rank if rank else float(layer.settings.get("scale", 1.0))
        own = tensors["A"].shape[0] if "A" in tensors else 1
        config = cls.Config(
            rank=own, alpha=scale * own, full_matrix="D" in tensors, out_factor=last - first, in_factor=left.shape[1],
            before=start - first * rows, after=last * rows - stop,
        )  # fmt: skip
        return config, {"C": left[first:last], **tensors}
