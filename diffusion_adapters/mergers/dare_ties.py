"""dare_ties: drop numbers at random, rescale the rest, elect signs, and merge (DARE with TIES).

Yu, Yu, Yu, Huang, Li 2023, https://arxiv.org/abs/2311.03099; PEFT's arithmetic on the dense ΔW.

T_i = M_i ΔW_i / density as in `dare_linear`, then merged by sign as in `ties`.
"""

from dataclasses import dataclass

from ..merge import MERGERS
from .sparse import RandomConfig, SignConfig, Sparse


@dataclass(frozen=True, kw_only=True)
class DareTiesConfig(SignConfig, RandomConfig):
    """The options of both."""


@MERGERS.register("dare_ties")
class DareTies(Sparse):
    """PEFT's `dare_ties`."""

    Config = DareTiesConfig
    function = "dare_ties"
