"""Frequency bands of what is added to image tokens: a wavelet over the token grid, one gain per band."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pywt
import torch
from torch import Tensor

WAVELET = "haar"  # needs no neighbours across the border, down to grids of two tokens


def smoothing(size: int, level: int) -> Tensor:
    """What the approximation at `level` keeps of a signal of `size` tokens: (size, size), the identity at level 0."""
    return _smoothing(size, level)


smoothing._dynamo_marked_constant = True  # type: ignore[attr-defined]  # PyWavelets cannot be traced


@functools.cache
def _smoothing(size: int, level: int) -> Tensor:
    signal = torch.eye(size).numpy()
    shapes = []
    for _ in range(level):
        shapes.append(len(signal))
        signal = pywt.dwt(signal, WAVELET, mode="symmetric", axis=0)[0]
    for before in reversed(shapes):
        signal = pywt.idwt(signal, None, WAVELET, mode="symmetric", axis=0)[:before]
    with torch.inference_mode(False):
        return torch.from_numpy(signal.copy()).float()


def filter_bands(values: Tensor, grid: tuple[int, int], gains: Sequence[float] | Tensor, coarser: int = 0) -> Tensor:
    """Multiply each band of `values` (batch, h w, channels) on the token grid (h, w) by its gain, from coarse to fine.

    F v = g_L v + Σ_l (g_{L-l} - g_{L-l+1}) P_l v for gains g_0 ... g_L; P_l keeps what is coarser than 2^l tokens.
    `coarser`: how often this grid is halved against the finest one, to which the gains refer; it has no finer bands.
    """
    levels = max(len(gains) - 1 - coarser, 0)
    rows, columns = grid
    image = values.unflatten(1, grid)
    result = gains[levels] * image
    for level in range(1, levels + 1):
        down, across = (smoothing(size, level).to(values) for size in (rows, columns))
        smooth = torch.einsum("ij,bjkc,lk->bilc", down, image, across)
        result = result + (gains[levels - level] - gains[levels - level + 1]) * smooth
    return result.flatten(1, 2)
