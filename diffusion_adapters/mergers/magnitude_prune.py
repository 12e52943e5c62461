"""magnitude_prune: the weighted sum of each adapter's largest numbers.

T_i = ΔW_i where |ΔW_i| is among its largest `density`, else 0; ΔW = Σ_i w_i T_i. PEFT's arithmetic on the dense ΔW.
"""

from ..merge import MERGERS
from .sparse import Sparse


@MERGERS.register("magnitude_prune")
class MagnitudePrune(Sparse):
    """PEFT's `magnitude_prune`."""

    function = "magnitude_prune"
