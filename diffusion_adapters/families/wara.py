"""WaRA: wavelet low-rank adaptation.

Heidari, Medghalchi, Khoursha, Rezaeian, Hacihaliloglu 2025, https://arxiv.org/abs/2506.24092.

ΔW = s IDWT2({B_b A_b}), the inverse 2-D wavelet transform of one low-rank product per sub-band b, with A_b
(rank, in / 2^j) and B_b (out / 2^j, rank) at depth j; s = alpha / rank. The transform is linear and separable, so ΔW is
built as LoRA factors: s [S_b B_b] (out, R) times [A_b S_bᵀ] (R, in), bands b side by side, S_b the synthesis of rows or
of columns, R = (3 level + 1) rank.
With `shared` one pair serves the bands LL and HH: R = 2 rank.
Starts at W: B = 0, A uniform within ± 1 / sqrt(in / 2^j).
Trains rank (in + out) (3 - 2 / 2^level) values per projection, or rank (in + out) / 2 with shared.

Differs from the paper: it is a reconstruction from the abstract and a figure's caption. `shared=False` reads the
abstract: the update itself is factorized in the wavelet domain. `shared=True` reads the figure of the first version:
one pair acts on all bands of the features; there the transform along the tokens cancels, and the sum over LL and HH is
left. The second version transforms along the tokens alone, which is a LoRA whatever the wavelet. Channels have no
neighbourhood: a band is a grouping of channels (with haar, of pairs), not a spatial scale.
"""

import math
from dataclasses import dataclass

import pywt
import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig
from ..options import option


@dataclass(frozen=True, kw_only=True)
class WaRAConfig(AdapterConfig):
    rank: int = option(4, "inner width of the update of one band, at most min(in, out) / 2^level", ge=1)
    alpha: float = option(4.0, "the update is multiplied by alpha / rank", gt=0)
    level: int = option(1, "depth of the transform; in and out must be multiples of 2^level", ge=1, le=10)
    wavelet: str = option("haar", "an orthogonal wavelet of PyWavelets: haar, db2 ... db38, sym2 ... sym20")
    shared: bool = option(False, "one pair of factors for the bands LL and HH (level 1), with a quarter of the values")


@FAMILIES.register("wara")
class WaRA(Adapter):
    Config = WaRAConfig

    def __init__(self, weight: Tensor, config: WaRAConfig) -> None:
        super().__init__(weight, config)
        if config.shared and config.level > 1:
            raise ValueError(f"level must be 1 with shared, got {config.level}: bands of two depths differ in size")
        for side, size in (("in", self.in_features), ("out", self.out_features)):
            if size % 2**config.level:
                fits = (size & -size).bit_length() - 1
                remedy = f"use level {fits} or less" if fits else "leave the projection out of target_modules"
                raise ValueError(
                    f"level {config.level} needs {side} = {size} to be a multiple of {2**config.level}; {remedy}"
                )
        coarsest = min(weight.shape) // 2**config.level
        if config.rank > coarsest:
            raise ValueError(f"rank {config.rank} exceeds min(out, in) / 2^level = {coarsest}")
        self.scaling = config.alpha / config.rank
        self.bands = 2 if config.shared else 3 * config.level + 1
        low, high = synthesis_taps(config.wavelet)
        # Bands in the order of PyWavelets: horizontal (rows high, columns low), vertical, diagonal. What is low on both
        # sides comes last: LL at the deepest level, what the level below gave at the others.
        rows = [high, low] if config.shared else [high, low, high] + [low] * (self.bands - 3)
        columns = [high, low] if config.shared else [low, high, high] + [low] * (self.bands - 3)
        self.row_taps = nn.Buffer(torch.tensor(rows), persistent=False)
        self.column_taps = nn.Buffer(torch.tensor(columns), persistent=False)
        self.A = nn.ParameterList()
        self.B = nn.ParameterList()
        for depth in range(config.level, 0, -1):
            count = 1 if config.shared else 4 if depth == config.level else 3
            size_in, size_out = self.in_features // 2**depth, self.out_features // 2**depth
            self.A.append(torch.empty(count, config.rank, size_in).uniform_(-(size_in**-0.5), size_in**-0.5))
            self.B.append(torch.zeros(count, config.rank, size_out))

    def factors(self) -> tuple[Tensor, float, Tensor]:
        up = self._synthesize(self.B, self.row_taps)
        return up.t(), self.scaling, self._synthesize(self.A, self.column_taps)

    def _synthesize(self, values: nn.ParameterList, taps: Tensor) -> Tensor:
        """Factors of each level, (bands, rank, size / 2^j) from the deepest on -> rows (R, size)."""
        rows, *finer = values
        if self.config.shared:
            rows = rows.expand(2, -1, -1)
        rows = synthesize(rows, taps[: len(rows)])
        for own in finer:
            rows = torch.cat((own, rows))
            rows = synthesize(rows, taps[: len(rows)])
        return rows.flatten(0, 1)


def synthesis_taps(name: str) -> list[list[list[float]]]:
    """Low and high pass of a wavelet's inverse transform as (shift, phase): x[2i + p] = Σ_t c[i + t - K] taps[t, p]."""
    try:
        wavelet = pywt.Wavelet(name)
    except ValueError as error:
        raise ValueError(f"wavelet {name!r} is unknown to PyWavelets; use haar, db2 or sym4, say") from error
    if not wavelet.orthogonal:
        raise ValueError(f"wavelet {name!r} is not orthogonal; use haar, db2 or sym4, say")
    length, reach = wavelet.dec_len, wavelet.dec_len // 4
    # The phase of PyWavelets' mode "periodization": x[k] = Σ_i c[i] filter[k - 2i + length / 2 - 1].
    places = [[2 * (reach - t) + p + length // 2 - 1 for p in (0, 1)] for t in range(2 * reach + 1)]
    filters = (wavelet.rec_lo, wavelet.rec_hi)
    return [[[f[k] if 0 <= k < length else 0.0 for k in pair] for pair in places] for f in filters]


def synthesize(bands: Tensor, taps: Tensor) -> Tensor:
    """One periodic level of the inverse transform: (bands, rank, n), taps (bands, 2 K + 1, 2) -> (bands, rank, 2 n)."""
    count, rank, size = bands.shape
    width = taps.shape[1]
    if width > 1:
        reach = width // 2
        laps = math.ceil(reach / size)  # more than one if the filter is longer than the signal
        around = torch.cat([bands] * (2 * laps + 1), dim=-1)
        bands = around[..., laps * size - reach : (laps + 1) * size + reach].unfold(-1, width, 1)
    return torch.bmm(bands.reshape(count, rank * size, width), taps).view(count, rank, 2 * size)
