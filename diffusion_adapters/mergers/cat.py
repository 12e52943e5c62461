"""cat: the weighted sum, factors side by side as they are.

ΔW = Σ_i w_i B_i A_i = [w_1 B_1 … w_n B_n] [A_1; …; A_n]: nothing is computed, the rank is the sum of theirs. Of an
adapter that is not low rank the best factors stand there. `rank` or `energy` cuts the sum, as linear does.
"""

from collections.abc import Sequence

from ..merge import MERGERS, Merger
from ..reduce import Cut, Factors, reduce_sum
from ..sources import Delta


@MERGERS.register("cat")
class Cat(Merger):
    """[w B …] [A; …]."""

    def merge(self, deltas: Sequence[Delta], where: str) -> Factors:
        if self.config.rank is not None or self.config.energy is not None:
            return self.cut_sum(deltas)
        others = [delta for delta in deltas if not delta.exact]
        return reduce_sum(deltas, Cut(self.default_rank(others) if others else None))
