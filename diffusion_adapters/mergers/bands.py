"""bands: strong directions from one adapter, weak ones from another.

ΔW_i = Σ_k σ_k u_k v_kᵀ, singular values descending. A direction k is in band b if the share of ‖ΔW_i‖² that stands
before it, Σ_{l<k} σ_l² / Σ_l σ_l², is at least b of the `edges`: band 0 holds the few directions that make the most of
ΔW, the last band the many that make the rest.

ΔW = Σ_i w_i Σ_k g_{i, b(k)} σ_k u_k v_kᵀ, with a gain g for each adapter and band. Without `gains` there are as many
bands as adapters, and each gives one: the first its strongest directions, the last its weakest. Exact where all are
low rank.

These are bands of the matrix, not of the image. ΔW acts on each token by itself, so that it commutes with any wavelet
over the tokens and no file of ΔW can treat coarse and fine detail of an image differently; `AdapterWeight(bands=…)`
does, while the model runs. Nor are channels in an order in which neighbours belong together: a wavelet along the rows
or columns of ΔW would depend on how they happen to be numbered, which singular directions do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..linalg import product_svd, truncated_svd
from ..merge import MERGERS, Merger, MergerConfig
from ..options import option
from ..reduce import Factors, side_by_side
from ..sources import Delta


@dataclass(frozen=True, kw_only=True)
class BandsConfig(MergerConfig):
    """Where bands meet, and the gain of each."""

    edges: tuple[float, ...] | None = option(
        None, "shares of the squared norm where bands meet, ascending (default: equal bands)", gt=0, lt=1
    )
    gains: tuple[float, ...] | None = option(
        None, "gain of each band of the first adapter, then of the next (default: each adapter gives one band)"
    )


@MERGERS.register("bands")
class Bands(Merger):
    """Σ w Σ g σ u vᵀ."""

    Config = BandsConfig

    def check(self, names: Sequence[str]) -> None:
        edges, gains, count = self.config.edges, self.config.gains, len(names)
        if edges is not None and list(edges) != sorted(set(edges)):
            raise ValueError(f"edges must ascend, got {', '.join(map(str, edges))}")
        bands = count if edges is None else len(edges) + 1
        if gains is None and bands != count:
            raise ValueError(f"{bands} bands for {count} adapters: give gains, {count} times {bands} numbers")
        if gains is not None and len(gains) != count * bands:
            raise ValueError(f"{len(gains)} gains for {count} adapters of {bands} bands each: give {count * bands}")
        self.names = list(names)
        self.edges = torch.tensor([(i + 1) / count for i in range(count - 1)] if edges is None else edges)
        self.gains = torch.eye(count) if gains is None else torch.tensor(gains).view(count, bands)

    def merge(self, deltas: Sequence[Delta], where: str) -> Factors:
        pairs = []
        for delta in deltas:
            if delta.exact is not None:
                up, down = product_svd(*delta.exact, None)
            else:
                up, down, _ = truncated_svd(delta.full(), None)
            squares = (up.norm(dim=0) * down.norm(dim=1)).square()
            before = (squares.cumsum(0) - squares) / squares.sum().clamp_min(1e-30)
            band = (before[:, None] >= self.edges.to(before)).sum(1)
            gains = self.gains[self.names.index(delta.name)].to(up)[band]
            pairs.append((delta.weight * gains * up, down))
        up, down = side_by_side(pairs)
        return self.cut_factors(up, down, deltas)
