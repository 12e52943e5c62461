"""LoLDU: low-rank adaptation via lower-diag-upper decomposition.

Shi, Wei, Wu, Ran, Sun, He, Yang 2024, https://arxiv.org/abs/2410.13618.

ΔW = s L diag(d) U with d (rank), and L (out, rank), U (rank, in) frozen: the first columns and rows of the factors of
W = P L D U, L with its rows permuted back, unit diagonals; s = alpha / rank. With `atom_norm` each product L_i U_i is
scaled to the norm ‖W‖ / sqrt(min(out, in)), so that one learning rate suits every width.
Starts at W: d = 0.
Trains rank values per projection.

The pivot rows `piv` are searched once and stored, beside the pivots `D`: a search in a rounded copy of W finds other
rows, and then ΔW is noise. A pivot of zero (a column that depends on those before it) makes a dead atom, `piv` = -1.

Differs from the paper: d is the difference from D, so that W stays as it is (the paper's rest W - L D U is larger than
W itself) and weight decay draws to W; there is no dense P; s is not trained; `atom_norm`.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, check_rank
from ..options import option


@dataclass(frozen=True, kw_only=True)
class LoLDUConfig(AdapterConfig):
    rank: int = option(32, "number of atoms of W that are scaled, at most min(in, out)", ge=1)
    alpha: float = option(32.0, "the update is multiplied by alpha / rank", gt=0)
    atom_norm: bool = option(True, "scale all atoms to one norm; without, as in the paper, use a learning rate of 5e-4")


@FAMILIES.register("loldu")
class LoLDU(Adapter):
    Config = LoLDUConfig
    reads_weight = True
    learning_rate = 5e-3

    def __init__(self, weight: Tensor, config: LoLDUConfig, pivots: Tensor | None = None) -> None:
        """`pivots`: the rows that an earlier search found, (rank,)."""
        super().__init__(weight, config)
        check_rank(config.rank, weight)
        if pivots is None:
            pivots = search_pivots(weight, config.rank)
        left, diagonal, right = ldu_atoms(weight, pivots)
        scale = torch.full_like(diagonal, config.alpha / config.rank)
        if config.atom_norm and not weight.is_meta:
            norms = left.norm(dim=0) * right.norm(dim=1) * min(weight.shape) ** 0.5
            scale *= torch.where(norms > 0, weight.norm().to(norms) / norms, 0)
        self.d = nn.Parameter(torch.zeros(config.rank, device=weight.device))
        self.piv = nn.Buffer(pivots.to(weight.device, torch.int32))
        self.D = nn.Buffer(diagonal.to(weight.device, torch.float32))
        self.L = nn.Buffer(left.to(weight), persistent=False)
        self.U = nn.Buffer((scale[:, None] * right).to(weight), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.L, self.d, self.U

    @classmethod
    def from_tensors(cls, weight: Tensor, config: Any, tensors: dict[str, Tensor]) -> Self:
        """Also raises ValueError if `weight` is not the W of the file, by how far its pivots are from those stored."""
        if weight.is_meta:
            raise RuntimeError("the weight is on the meta device, without numbers; load the base before its adapters")
        cls(weight, config, torch.full((config.rank,), -1)).check_tensors(tensors)
        pivots, stored = tensors["piv"].long().cpu(), tensors["D"].double().cpu()
        alive = pivots >= 0
        rows = pivots[alive]
        if pivots.min() < -1 or pivots.max() >= len(weight) or len(rows.unique()) < len(rows):
            raise ValueError(f"piv must hold distinct rows of W, 0 to {len(weight) - 1}, or -1; got {pivots.tolist()}")
        adapter = cls(weight, config, pivots)
        found = adapter.D.double().cpu()
        drift = float(((found - stored) / stored)[alive].abs().median()) if len(rows) else 0.0
        # Rounding W to bf16 moves the pivots by 1e-3, and 5 % of noise by 1e-2; another W has entries of L above 1.
        if not drift < 2e-2 or not adapter.L.abs().max() < 1.5:
            raise ValueError(f"this is not the base that the adapter was made for: its pivots are off by {drift:.2g}")
        if drift > 2e-3:
            warnings.warn("the base differs from the one that the adapter was made for, by 1 % to 5 %", stacklevel=2)
        adapter.load_state_dict(tensors)
        return adapter


# Both on the CPU and in fp64, so that every machine and device gets the same atoms.


def search_pivots(weight: Tensor, rank: int) -> Tensor:
    """Rows of partial pivoting in the first columns of W, (out, in) -> (rank,); -1 where a column is dependent."""
    pivots = torch.full((rank,), -1, device=weight.device)
    if weight.is_meta:
        return pivots
    rest = weight[:, :rank].to("cpu", torch.float64, copy=True)
    tolerance = 1e-10 * float(weight.abs().max())
    for k in range(rank):
        row = int(rest[:, k].abs().argmax())
        if rest[row, k].abs() > tolerance:
            pivots[k] = row
            rest[:, k:] -= torch.outer(rest[:, k] / rest[row, k], rest[row, k:])  # 0 in this row: not found again
    return pivots


def ldu_atoms(weight: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L (out, rank), D (rank,), U (rank, in) of W eliminated in the order of `pivots`, fp64; zero where it has -1."""
    rank = len(pivots)
    if weight.is_meta:
        return weight[:, :rank], weight[0, :rank], weight[:rank]
    alive = pivots.cpu() >= 0
    columns, rows = alive.nonzero().flatten(), pivots.cpu()[alive].long()
    panel, tops = (part.to("cpu", torch.float64) for part in (weight[:, columns], weight[rows]))
    core = tops[:, columns]
    for k in range(len(core) - 1):
        core[k + 1 :, k] /= core[k, k]
        core[k + 1 :, k + 1 :] -= torch.outer(core[k + 1 :, k], core[k, k + 1 :])
    left = torch.linalg.solve_triangular(core, panel, upper=True, left=False)
    right = torch.linalg.solve_triangular(core, tops, upper=False, unitriangular=True) / core.diagonal()[:, None]
    L, D, U = (panel.new_zeros(shape) for shape in ((len(panel), rank), (rank,), (rank, tops.shape[1])))
    L[:, columns], D[columns], U[columns] = left, core.diagonal(), right
    return L, D, U
