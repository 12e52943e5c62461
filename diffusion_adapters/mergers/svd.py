"""svd: the weighted sum, cut to the largest of the ranks merged.

ΔW = the best approximation of Σ_i w_i ΔW_i of rank at most `rank` that keeps `energy` (singular value decomposition,
Eckart and Young 1936). If neither is given the rank is the largest among the adapters, as in PEFT.
"""

from collections.abc import Sequence

from ..merge import MERGERS
from ..sources import Delta
from .linear import Linear


@MERGERS.register("svd")
class SVD(Linear):
    """The first singular directions of Σ w ΔW."""

    def default_rank(self, deltas: Sequence[Delta]) -> int:
        return max(delta.rank for delta in deltas)
