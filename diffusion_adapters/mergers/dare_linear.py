"""dare_linear: drop numbers at random, rescale the rest, and add (DARE).

Yu, Yu, Yu, Huang, Li 2023, https://arxiv.org/abs/2311.03099; PEFT's arithmetic on the dense ΔW.

T_i = M_i ΔW_i / density, M_i 1 with probability `density`, else 0; ΔW = Σ_i w_i T_i, whose mean over M is Σ_i w_i ΔW_i.
M is drawn from `seed`, anew for each projection.
"""

from ..merge import MERGERS
from .sparse import RandomConfig, Sparse


@MERGERS.register("dare_linear")
class DareLinear(Sparse):
    """PEFT's `dare_linear`."""

    Config = RandomConfig
    function = "dare_linear"
