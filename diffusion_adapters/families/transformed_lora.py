"""TLoRA: transformed low-rank adaptation (not T-LoRA, whose rank depends on the timestep).

Tao, Takida, Murata, Zhao, Mitsufuji 2025, https://arxiv.org/abs/2501.08727, section 3. In its tables TLoRA*(RT, r) is
`transform_rank=RT, rank=r`, and TLoRA(RT, R) is `transform_rank=RT, residual=tensor_ring, rank=R`.

ΔW = W (T - I) + s B A with T (in, in), B (out, rank), A (rank, in); s = alpha / sqrt(rank), or alpha / rank.
T[i, j] = tr(C_1[i_1, j_1] C_2[i_2, j_2] C_3[i_3, j_3]), a ring of cores C_d = I ⊗ Q_d + E_d, (J_d, J_d, RT, RT), with
in = J_1 J_2 J_3 row-major; a Kronecker product for RT = 1, nothing for RT = 0. `residual=tensor_ring` makes B A a ring
too, of cores (I_d, rank, rank) and (J_d, rank, rank): a matrix of rank rank².
Starts at W: E = 0, tr(Q_1 Q_2 Q_3) = 1, B = 0 (of a ring its first core). With `start=paper` Q_d is 1 / RT everywhere;
then all slices of a core get equal gradients and T stays a Kronecker product for ever. `start=broken` is uneven.
Trains transform_rank² Σ in_modes² + rank (in + out) values per projection, or
transform_rank² Σ in_modes² + rank² Σ in_modes + rank² Σ out_modes with residual=tensor_ring.

Differs from the paper: the start; cores are kept as the difference E from it, so that weight decay draws T to I and
not to 0; the learning rate of T is divided by RT, the factor by which a ring's steps are longer.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, check_rank
from ..linalg import ring_bonds, ring_delta
from ..options import option


@dataclass(frozen=True, kw_only=True)
class TransformedLoRAConfig(AdapterConfig):
    transform_rank: int = option(1, "ring rank of the transform; 1 is a Kronecker product, 0 no transform", ge=0, le=16)
    residual: str = option("lora", "form of the additive part", choices=("lora", "tensor_ring"))
    rank: int = option(4, "rank of the additive part; a tensor ring of rank r is a matrix of rank r²", ge=1)
    alpha: float = option(1.0, "the additive part is multiplied by alpha / sqrt(rank)", gt=0)
    rslora: bool = option(True, "divide alpha by sqrt(rank) rather than by rank")
    start: str = option("broken", "identity that the ring starts from", choices=("broken", "paper"))
    identity_penalty: float = option(0.0, "weight of Σ ‖E[:, :, r, s]‖ in the loss: keeps T near the identity", ge=0)


@FAMILIES.register("transformed_lora", "tlora")
class TransformedLoRA(Adapter):
    Config = TransformedLoRAConfig

    def __init__(self, weight: Tensor, config: TransformedLoRAConfig) -> None:
        super().__init__(weight, config)
        check_rank(config.rank, weight)
        ring, rank = config.transform_rank, config.rank
        self.transforms_input = ring > 0
        self.scaling = config.alpha / (math.sqrt(rank) if config.rslora else rank)
        self.in_modes, self.out_modes = modes(self.in_features), modes(self.out_features)
        self.E = nn.ParameterList(torch.zeros(n, n, ring, ring) for n in self.in_modes if ring)
        bonds = start_bonds(ring, config.start)
        starts = (torch.eye(n)[..., None, None] * bond for n, bond in zip(self.in_modes[:2], bonds[:2], strict=True))
        self.start_1, self.start_2 = (nn.Buffer(start, persistent=False) for start in starts)
        self.bonds = nn.Buffer(ring_bonds(bonds), persistent=False)
        if config.residual == "lora":
            self.A = nn.Parameter(nn.init.kaiming_normal_(torch.empty(rank, self.in_features), a=math.sqrt(5)))
            self.B = nn.Parameter(torch.zeros(self.out_features, rank))
        else:
            self.ring_in = nn.ParameterList(torch.randn(n, rank, rank) / n**0.5 for n in self.in_modes)
            self.ring_out = nn.ParameterList(torch.randn(n, rank, rank) * n**0.5 / rank**2 for n in self.out_modes)
            nn.init.zeros_(self.ring_out[0])

    def factors(self) -> tuple[Tensor, float, Tensor]:
        if self.config.residual == "lora":
            return self.B, self.scaling, self.A
        pairs = ((torch.einsum("irs,jst->ijrt", a, b).flatten(0, 1), c) for a, b, c in (self.ring_in, self.ring_out))
        down, up = (torch.einsum("irs,jst->ijrt", *pair).flatten(0, 1) for pair in pairs)
        return up.flatten(1), self.scaling, down.transpose(1, 2).flatten(1).t()  # the trace swaps the bonds

    def input_delta(self, x: Tensor, transposed: bool = False) -> Tensor:
        """(T - I) x, or (T - I)ᵀ x, (..., in) -> (..., in)."""
        cores = [core.transpose(0, 1) for core in self.E] if transposed else list(self.E)
        rows = x.reshape(-1, x.shape[-1])
        return ring_delta(rows, cores, (self.start_1, self.start_2), self.bonds).view(x.shape)

    def delta_weight(self, weight: Tensor) -> Tensor:
        delta = super().delta_weight(weight)
        return delta + self.input_delta(weight, transposed=True) if self.transforms_input else delta

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        rest = [value for name, value in self.named_parameters() if not name.startswith("E.")]
        slower = learning_rate / max(self.config.transform_rank, 1)
        return [{"params": rest, "lr": learning_rate}, {"params": list(self.E), "lr": slower}]

    def penalty(self) -> Tensor | None:
        cores = list(self.E) if self.config.identity_penalty else []
        norms = [torch.linalg.vector_norm(core, dim=(0, 1)).sum() for core in cores]
        return self.config.identity_penalty * torch.stack(norms).sum() if norms else None


def modes(size: int) -> tuple[int, int, int]:
    """Three factors of `size`, ascending, with the least sum of squares; the authors' table where it differs."""
    firsts = [n for n in range(1, round(size ** (1 / 3)) + 1) if size % n == 0]
    found = [(a, b, size // a // b) for a in firsts for b in range(a, math.isqrt(size // a) + 1) if size // a % b == 0]
    return (4, 8, 10) if size == 320 else min(found, key=lambda factors: sum(n * n for n in factors))


def start_bonds(ring: int, start: str) -> Tensor:
    """Q (3, ring, ring) with tr(Q_1 Q_2 Q_3) = 1. Any matrices without symmetry will do; fixed ones need no storing."""
    bonds = torch.full((3, ring, ring), 1 / max(ring, 1))
    if start == "broken" and ring > 1:
        bonds *= 1 + 0.7 * torch.arange(1.0, bonds.numel() + 1).square().cos().view_as(bonds)
        bonds[2] /= torch.trace(bonds[0] @ bonds[1] @ bonds[2])
    return bonds
