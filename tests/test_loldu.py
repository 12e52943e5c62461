"""LoLDU: the factors against LAPACK, the stored pivots, and the refusal of another base."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_adapters.families.loldu import LoLDU, LoLDUConfig, ldu_atoms, search_pivots

SHAPES = [(24, 24), (96, 40), (40, 96), (220, 200)]


def stirred(weight: Tensor, **options: Any) -> LoLDU:
    adapter = LoLDU(weight, LoLDUConfig(**options))
    with torch.no_grad():
        adapter.d.normal_()
    return adapter


def state(adapter: LoLDU) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapter.state_dict().items()}


def delta(adapter: LoLDU) -> Tensor:
    return adapter.delta_weight(torch.empty(0)).detach()


@pytest.mark.parametrize(("shape", "rank"), [(shape, rank) for shape in SHAPES for rank in (1, 7, 24, min(shape))])
def test_atoms_are_those_of_lapack(shape: tuple[int, int], rank: int) -> None:
    W = torch.randn(shape, dtype=torch.float64)
    L, D, U = ldu_atoms(W, search_pivots(W, rank))
    permutation, lower, upper = torch.linalg.lu(W)
    diagonal = upper.diagonal()
    torch.testing.assert_close(L, (permutation @ lower)[:, :rank], rtol=0, atol=1e-12)
    torch.testing.assert_close(D, diagonal[:rank], rtol=1e-10, atol=0)
    torch.testing.assert_close(U, (upper / diagonal[:, None])[:rank], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_taken_out_leaves_zeros(shape: tuple[int, int]) -> None:
    """W - L D U is zero in the first columns and in the pivot rows; |L| is at most 1; the diagonals are 1."""
    W = torch.randn(shape, dtype=torch.float64)
    pivots = search_pivots(W, 16)
    L, D, U = ldu_atoms(W, pivots)
    rest = W - L @ torch.diag(D) @ U
    assert float(rest[:, :16].abs().max()) < 1e-12
    assert float(rest[pivots].abs().max()) < 1e-12
    assert float(L.abs().max()) <= 1 + 1e-12
    torch.testing.assert_close(L[pivots].diagonal(), torch.ones(16).double())
    torch.testing.assert_close(U.diagonal(), torch.ones(16).double())
    assert float(L[pivots].triu(1).abs().max()) < 1e-12
    assert float(U[:, :16].tril(-1).abs().max()) < 1e-12


def test_ranks_are_nested() -> None:
    """The atoms of a lower rank are the first of a higher one, so that vectors of both can be added."""
    W = torch.randn(64, 48)
    low, high = (LoLDU(W, LoLDUConfig(rank=rank, alpha=float(rank))) for rank in (8, 20))
    assert torch.equal(low.piv, high.piv[:8])
    torch.testing.assert_close(low.L, high.L[:, :8], rtol=0, atol=1e-6)
    torch.testing.assert_close(low.U, high.U[:8], rtol=1e-5, atol=1e-6)


def test_literal() -> None:
    """A singular matrix: its second column is twice the first, so that the second atom is dead."""
    W = torch.tensor([[1.0, 2, 3], [2, 4, 1], [3, 6, 2]])
    pivots = search_pivots(W, 3)
    assert pivots.tolist() == [2, -1, 0]
    L, D, U = ldu_atoms(W, pivots)
    third = 1 / 3
    torch.testing.assert_close(D, torch.tensor([3, 0, 7 * third]).double())
    torch.testing.assert_close(L, torch.tensor([[third, 0, 1], [2 * third, 0, -1 / 7], [1, 0, 0]]).double())
    torch.testing.assert_close(U, torch.tensor([[1, 2, 2 * third], [0, 0, 0], [0, 0, 1]]).double())


@pytest.mark.parametrize("atom_norm", [True, False])
def test_dead_atoms(atom_norm: bool) -> None:
    W = torch.randn(30, 24)
    W[:, 0], W[:, 5] = 0, W[:, 3]
    adapter = stirred(W, rank=8, atom_norm=atom_norm)
    assert [k for k, row in enumerate(adapter.piv.tolist()) if row < 0] == [0, 5]
    assert torch.isfinite(delta(adapter)).all()
    assert not adapter.L[:, [0, 5]].any()
    assert not adapter.U[[0, 5]].any()
    loaded = LoLDU.from_tensors(W, adapter.config, state(adapter))
    assert torch.equal(delta(loaded), delta(adapter))
    flipped = LoLDU.from_tensors(W.bfloat16().float(), adapter.config, state(adapter))
    assert flipped.piv.tolist() == adapter.piv.tolist()


def test_weight_of_zeros_has_no_atoms() -> None:
    adapter = stirred(torch.zeros(12, 9), rank=4)
    assert adapter.piv.tolist() == [-1] * 4
    assert not delta(adapter).any()
    LoLDU.from_tensors(torch.zeros(12, 9), adapter.config, state(adapter))


def test_paper_form() -> None:
    """d = 1 on the paper's form is one more unit on each of the diagonal's values."""
    W = torch.randn(40, 32, dtype=torch.float64)
    adapter = LoLDU(W, LoLDUConfig(rank=8, alpha=4.0, atom_norm=False))
    L, _, U = ldu_atoms(W, adapter.piv)
    with torch.no_grad():
        adapter.d.copy_(torch.arange(8.0))
    torch.testing.assert_close(delta(adapter), 0.5 * L @ torch.diag(torch.arange(8.0).double()) @ U)


@pytest.mark.parametrize("shape", [(320, 320), (320, 768), (1280, 640)])
def test_atoms_have_one_norm(shape: tuple[int, int]) -> None:
    """A step of 5e-3 on all values moves W by about 5e-3 sqrt(rank / min(out, in)) of its norm, at any width."""
    W = 0.03 * torch.randn(shape)
    adapter = LoLDU(W, LoLDUConfig())
    norms = adapter.L.norm(dim=0) * adapter.U.norm(dim=1)
    torch.testing.assert_close(norms, (W.norm() / min(shape) ** 0.5).expand(32), rtol=1e-4, atol=0)
    with torch.no_grad():
        adapter.d.copy_(5e-3 * torch.randn(32).sign())
    moved = float(delta(adapter).norm() / W.norm())
    assert moved == pytest.approx(5e-3 * (32 / min(shape)) ** 0.5, rel=0.35)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_stored_pivots_survive_rounding_of_the_base(dtype: torch.dtype, error: float) -> None:
    W = 0.03 * torch.randn(320, 320)
    adapter = stirred(W, rank=128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = LoLDU.from_tensors(W.to(dtype).float(), adapter.config, state(adapter))
    assert float((delta(loaded) - delta(adapter)).norm() / delta(adapter).norm()) < error


def test_search_in_a_rounded_base_finds_others() -> None:
    """Why pivots are stored."""
    weights = [torch.randn(320, 320) for _ in range(4)]
    assert any(not torch.equal(search_pivots(W, 128), search_pivots(W.bfloat16().float(), 128)) for W in weights)


def test_changed_base_warns() -> None:
    W = torch.randn(320, 320)
    adapter = stirred(W)
    with pytest.warns(UserWarning, match="the base differs from the one that the adapter was made for"):
        LoLDU.from_tensors(W + 0.02 * torch.randn(320, 320), adapter.config, state(adapter))


@pytest.mark.parametrize("noise", [0.5, 100.0])
def test_wrong_base_is_refused(noise: float) -> None:
    W = torch.randn(320, 320)
    adapter = stirred(W)
    with pytest.raises(ValueError, match=r"not the base that the adapter was made for: its pivots are off by \d"):
        LoLDU.from_tensors(W + noise * torch.randn(320, 320), adapter.config, state(adapter))


def test_base_that_is_not_finite_is_refused() -> None:
    W = torch.randn(32, 32)
    adapter = stirred(W, rank=4)
    with pytest.raises(ValueError, match="not the base"):
        LoLDU.from_tensors(torch.zeros(32, 32), adapter.config, state(adapter))


def test_base_without_numbers_is_refused() -> None:
    W = torch.randn(32, 32)
    adapter = stirred(W, rank=4)
    with pytest.raises(RuntimeError, match="load the base before its adapters"):
        LoLDU.from_tensors(W.to("meta"), adapter.config, state(adapter))


@pytest.mark.parametrize("pivots", [[0, 0, 1, 2], [0, 1, 2, 32], [-2, 0, 1, 2]])
def test_pivots_that_are_no_rows_are_refused(pivots: list[int]) -> None:
    W = torch.randn(32, 32)
    adapter = stirred(W, rank=4)
    tensors = {**state(adapter), "piv": torch.tensor(pivots, dtype=torch.int32)}
    with pytest.raises(ValueError, match="piv must hold distinct rows of W, 0 to 31, or -1"):
        LoLDU.from_tensors(W, adapter.config, tensors)


def test_file_is_small_and_in_the_dtypes_that_it_needs() -> None:
    adapter = LoLDU(torch.randn(320, 768), LoLDUConfig())
    dtypes = {name: value.dtype for name, value in adapter.state_dict().items()}
    assert dtypes == {"d": torch.float32, "piv": torch.int32, "D": torch.float32}
    assert all(value.shape == (32,) for value in adapter.state_dict().values())
    assert adapter.bfloat16().piv.dtype == torch.int32


def test_start_takes_milliseconds() -> None:
    """Creation and loading of one projection 1280 x 1280: 5 s, not minutes, for the 560 of a large UNet."""
    W = 0.03 * torch.randn(1280, 1280)
    adapter = LoLDU(W, LoLDUConfig())
    tensors = state(adapter)
    for make in (lambda: LoLDU(W, LoLDUConfig()), lambda: LoLDU.from_tensors(W, adapter.config, tensors)):
        times = []
        for _ in range(5):
            begun = time.process_time()
            make()
            times.append(time.process_time() - begun)
        assert min(times) < 0.1


def test_gradient_is_the_closed_form() -> None:
    """∂loss / ∂d_i = Σ over tokens of (x Uᵀ)_i (g L)_i, not zero at the start."""
    W, x, g = torch.randn(40, 32), torch.randn(5, 32), torch.randn(5, 40)
    adapter = LoLDU(W, LoLDUConfig(rank=8))
    up, down = adapter.low_rank()
    (x @ (up @ down).t() * g).sum().backward()
    expected = ((x @ adapter.U.t()) * (g @ adapter.L)).sum(dim=0)
    assert adapter.d.grad is not None
    torch.testing.assert_close(adapter.d.grad, expected, rtol=1e-4, atol=1e-4)
