"""The truncated SVD: as good as the best, and honest about what it leaves out."""

from __future__ import annotations

import pytest
import torch

from diffusion_adapters.linalg import ring_bonds, ring_delta, truncated_svd


@pytest.mark.parametrize("shape", [(200, 320), (320, 200), (24, 40)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rank", [1, 4, 20])
def test_is_the_best_of_its_rank(shape: tuple[int, int], decay: float, rank: int) -> None:
    size = min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, size)).Q for side in shape)
    values = torch.arange(1.0, size + 1) ** -decay
    matrix = left * values @ right.t()
    up, down, error = truncated_svd(matrix, rank)
    assert up.shape == (shape[0], rank)
    assert down.shape == (rank, shape[1])
    assert error == pytest.approx(float(values[rank:].norm() / values.norm()), rel=2e-3)
    assert error == pytest.approx(float((up @ down - matrix).norm() / matrix.norm()), rel=1e-3, abs=1e-6)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-3, atol=1e-5)


def test_exact_where_the_rank_is_enough() -> None:
    matrix = torch.randn(300, 3) @ torch.randn(3, 200)
    assert truncated_svd(matrix, 3)[2] < 1e-5
    assert truncated_svd(matrix, 8)[2] < 1e-5
    assert truncated_svd(torch.zeros(300, 200), 4)[2] == 0


def test_same_every_time_and_leaves_the_generator_alone() -> None:
    matrix, before = torch.randn(300, 200), torch.get_rng_state()
    first, second = truncated_svd(matrix, 4), truncated_svd(matrix, 4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ring", [1, 2])
def test_gradient_of_a_ring(ring: int) -> None:
    """The written gradient is the numerical one, the forward is that of the dense matrix, 0 at the start."""
    sizes = (2, 3, 4)
    bonds = torch.randn(3, ring, ring, dtype=torch.float64) if ring > 1 else torch.ones(3, 1, 1, dtype=torch.float64)
    bonds[2] /= torch.trace(bonds[0] @ bonds[1] @ bonds[2])
    starts = [torch.eye(n).double()[..., None, None] * bond for n, bond in zip(sizes, bonds, strict=True)]
    cores = [torch.randn(n, n, ring, ring, dtype=torch.float64, requires_grad=True) for n in sizes]
    x = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    constants = starts[:2], ring_bonds(bonds)
    whole = (start + core for start, core in zip(starts, cores, strict=True))
    dense = torch.einsum("abrs,cdst,eftr->acebdf", *whole).reshape(24, 24) - torch.eye(24)
    torch.testing.assert_close(ring_delta(x, cores, *constants), x @ dense.t())
    assert not ring_delta(x, [torch.zeros_like(core) for core in cores], *constants).any()
    assert torch.autograd.gradcheck(lambda x, *cores: ring_delta(x, cores, *constants), (x, *cores))
