"""dare_linear: drop numbers at random, rescale the rest, and add (DARE).

Yu, Yu, Yu, Huang, Li 2023, https://arxiv.org/abs/2311.03099; PEFT's arithmetic on the dense ΔW.

T_i = M_i ΔW_i / density, M_i 1 with probability `density`, else 0; ΔW = Σ_i w_i T_i, whose mean over M is Σ_i w_i ΔW_i.
M is drawn from `seed`, anew for each projection.
"""

from dataclasses import dataclass

from ..merge import MERGERS
from ..options import option
from .sparse import Sparse, SparseConfig


@dataclass(frozen=True, kw_only=True)
class DareConfig(SparseConfig):
    """The same, and the seed."""

    seed: int = option(0, "seed of what is dropped", ge=0)


@MERGERS.register("dare_linear")
class DareLinear(Sparse):
    """PEFT's `dare_linear`."""

    Config = DareConfig
    function = "dare_linear"
    random = True
