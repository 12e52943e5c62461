"""ties: trim, elect sign, and merge (TIES).

Yadav, Tam, Choshen, Raffel, Bansal 2023, https://arxiv.org/abs/2306.01708; PEFT's arithmetic on the dense ΔW.

T_i = ΔW_i where |ΔW_i| is among its largest `density`, else 0. At each number the sign s is that of Σ_i T_i (or of most
T_i), and ΔW = Σ_i w_i T_i over those of sign s, by their count.
"""

from ..merge import MERGERS
from .sparse import SignConfig, Sparse


@MERGERS.register("ties")
class Ties(Sparse):
    """PEFT's `ties`."""

    Config = SignConfig
    function = "ties"
