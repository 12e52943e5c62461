"""linear: the weighted sum, in the smallest rank that holds it.

ΔW = Σ_i w_i ΔW_i. Exact where all are low rank, unless `rank` or `energy` cuts it: directions that the adapters share
are stored once, so that the rank is that of the sum, at most the sum of theirs.
"""

from collections.abc import Sequence

from ..merge import MERGERS, Merger
from ..reduce import Factors
from ..sources import Delta


@MERGERS.register("linear")
class Linear(Merger):
    """Σ w ΔW."""

    def merge(self, deltas: Sequence[Delta], where: str) -> Factors:
        return self.cut_sum(deltas)
