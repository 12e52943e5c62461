"""WaRA against PyWavelets, against the literal Haar patterns, and against what the paper's other readings come to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor

from diffusion_adapters.families.wara import WaRA, WaRAConfig, synthesis_taps, synthesize

MODE = "periodization"
M = [[1.0, 2.0], [3.0, 4.0]]


@pytest.fixture
def _double() -> Iterator[None]:
    """Parameters and taps in fp64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


double = pytest.mark.usefixtures("_double")


def stirred(out_features: int, in_features: int, **options: Any) -> WaRA:
    adapter = WaRA(torch.empty(out_features, in_features), WaRAConfig(**options))
    with torch.no_grad():
        for value in adapter.parameters():
            value.normal_()
    return adapter


def delta(adapter: WaRA) -> Tensor:
    return adapter.delta_weight(torch.empty(adapter.out_features, adapter.in_features)).detach()


def with_bands(**bands: list[list[float]]) -> Tensor:
    """ΔW (4, 4) of the 2 x 2 sub-bands given, by the names rows-columns; the others are zero."""
    adapter = WaRA(torch.empty(4, 4), WaRAConfig(rank=2, alpha=2.0))
    with torch.no_grad():
        for index, band in enumerate(("HL", "LH", "HH", "LL")):
            adapter.A[0][index] = torch.eye(2)
            adapter.B[0][index] = torch.tensor(bands.get(band, [[0.0, 0.0], [0.0, 0.0]])).t()
    return delta(adapter)


@double
@pytest.mark.parametrize("wavelet", ["haar", "db2", "db3", "db4", "db20", "sym5", "coif2"])
@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("shape", [(48, 32), (16, 64)])
def test_factors_are_the_inverse_transform(wavelet: str, level: int, shape: tuple[int, int]) -> None:
    """`up @ down` = waverec2 of the products of all bands, also where the filter is longer than the band."""
    adapter = stirred(*shape, rank=2, alpha=3.0, level=level, wavelet=wavelet)
    coefficients: list[Any] = []
    for A, B in zip(adapter.A, adapter.B, strict=True):
        bands = [1.5 * (b.t() @ a).detach().numpy() for a, b in zip(A, B, strict=True)]
        coefficients += [bands[3], tuple(bands[:3])] if not coefficients else [tuple(bands)]
    expected = pywt.waverec2(coefficients, wavelet, MODE)
    up, down = adapter.low_rank()
    assert up.shape[1] == 2 * (3 * level + 1)
    np.testing.assert_allclose((up @ down).detach().numpy(), expected, rtol=0, atol=1e-12 * abs(expected).max())
    if level == 1:
        once = pywt.idwt2((coefficients[0], coefficients[1]), wavelet, MODE)
        np.testing.assert_allclose((up @ down).detach().numpy(), once, rtol=0, atol=1e-12 * abs(once).max())


@double
@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4"])
def test_synthesis_is_orthogonal_and_that_of_pywavelets(wavelet: str) -> None:
    low, high = (synthesize(torch.eye(8)[None], torch.tensor([taps]))[0].t() for taps in synthesis_taps(wavelet))
    whole = torch.cat((low, high), dim=1)
    torch.testing.assert_close(whole @ whole.t(), torch.eye(16), rtol=0, atol=1e-10)
    for k in range(8):
        unit = np.eye(8)[k]
        np.testing.assert_allclose(low[:, k].numpy(), pywt.idwt(unit, None, wavelet, MODE), atol=1e-14)
        np.testing.assert_allclose(high[:, k].numpy(), pywt.idwt(None, unit, wavelet, MODE), atol=1e-14)


@double
def test_db2_row() -> None:
    low = synthesize(torch.eye(4)[None], torch.tensor(synthesis_taps("db2")[:1]))[0]
    expected = [0.836516, 0.224144, -0.129410, 0, 0, 0, 0, 0.482963]
    torch.testing.assert_close(low[0], torch.tensor(expected), rtol=0, atol=1e-6)


@double
@pytest.mark.parametrize(
    ("band", "expected"),
    [
        ("LL", "0.5 0.5 1 1; 0.5 0.5 1 1; 1.5 1.5 2 2; 1.5 1.5 2 2"),
        ("HL", "0.5 0.5 1 1; -0.5 -0.5 -1 -1; 1.5 1.5 2 2; -1.5 -1.5 -2 -2"),
        ("LH", "0.5 -0.5 1 -1; 0.5 -0.5 1 -1; 1.5 -1.5 2 -2; 1.5 -1.5 2 -2"),
        ("HH", "0.5 -0.5 1 -1; -0.5 0.5 -1 1; 1.5 -1.5 2 -2; -1.5 1.5 -2 2"),
    ],
)
def test_haar_patterns(band: str, expected: str) -> None:
    rows = [[float(value) for value in row.split()] for row in expected.split(";")]
    torch.testing.assert_close(with_bands(**{band: M}), torch.tensor(rows))


@double
def test_shared_haar_is_a_kronecker_product_with_the_identity() -> None:
    adapter = WaRA(torch.empty(4, 4), WaRAConfig(rank=2, alpha=2.0, shared=True))
    with torch.no_grad():
        adapter.A[0][0], adapter.B[0][0] = torch.eye(2), torch.tensor(M).t()
    expected = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 2], [3, 0, 4, 0], [0, 3, 0, 4]])
    torch.testing.assert_close(delta(adapter), expected)
    torch.testing.assert_close(delta(adapter), with_bands(LL=M, HH=M))
    wrong = torch.tensor([[2.0, 0, 4, 0], [0, 0, 0, 0], [6, 0, 8, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(with_bands(LL=M, LH=M, HL=M, HH=M), wrong)


@double
@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4"])
def test_shared_keeps_trace_and_norm_twice(wavelet: str) -> None:
    adapter = stirred(16, 16, rank=3, alpha=3.0, shared=True, wavelet=wavelet)
    inner = (adapter.B[0][0].t() @ adapter.A[0][0]).detach()
    torch.testing.assert_close(delta(adapter).trace(), 2 * inner.trace())
    torch.testing.assert_close(delta(adapter).square().sum(), 2 * inner.square().sum())


@double
@pytest.mark.parametrize(("options", "rank"), [({}, 8), ({"shared": True}, 4), ({"level": 2}, 14), ({"level": 3}, 20)])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_rank(options: dict[str, Any], rank: int, wavelet: str) -> None:
    adapter = stirred(96, 64, rank=2, wavelet=wavelet, **options)
    assert torch.linalg.matrix_rank(delta(adapter)) == rank


@double
def test_transforming_the_tokens_would_change_nothing() -> None:
    """The figure, taken literally: DWT of channels x tokens, one pair on all bands, inverse DWT."""
    adapter = stirred(12, 8, rank=2, alpha=2.0, shared=True, wavelet="db2")
    inner = (adapter.B[0][0].t() @ adapter.A[0][0]).detach().numpy()
    x = np.random.default_rng(0).normal(size=(8, 77))
    modes = (MODE, "zero")
    low, details = pywt.dwt2(x, "db2", modes)
    y = pywt.idwt2((inner @ low, tuple(inner @ band for band in details)), "db2", modes)[:, :77]
    np.testing.assert_allclose(y, delta(adapter).numpy() @ x, atol=1e-12)


def test_rank_of_one_band_is_bound() -> None:
    WaRA(torch.empty(8, 32), WaRAConfig(rank=4))
    with pytest.raises(ValueError, match=r"rank 5 exceeds min\(out, in\) / 2\^level = 4"):
        WaRA(torch.empty(8, 32), WaRAConfig(rank=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 3}, "level 3 needs in = 12 to be a multiple of 8; use level 2 or less"),
        ({"wavelet": "bior2.2"}, "wavelet 'bior2.2' is not orthogonal; use haar, db2 or sym4, say"),
        ({"wavelet": "haarr"}, "wavelet 'haarr' is unknown to PyWavelets; use haar, db2 or sym4, say"),
        ({"level": 2, "shared": True}, "level must be 1 with shared, got 2"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        WaRA(torch.empty(16, 12), WaRAConfig(rank=1, **options))


def test_odd_width_raises() -> None:
    with pytest.raises(ValueError, match="level 1 needs out = 15 to be a multiple of 2; leave the projection out of"):
        WaRA(torch.empty(15, 12), WaRAConfig(rank=1))


def test_start_moves_as_far_as_lora_does() -> None:
    """Rows of the synthesized down-projection have the norm 1 / sqrt(3) that a LoRA's have."""
    norms = stirred_start(1280).norm(dim=1)
    assert float((norms - 3**-0.5).abs().max()) < 0.05


def stirred_start(size: int) -> Tensor:
    return WaRA(torch.empty(size, size), WaRAConfig()).low_rank()[1].detach()
