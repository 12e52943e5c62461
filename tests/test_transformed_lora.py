"""TLoRA: the literal tensors of its definition, an exact start, and a ring that leaves the Kronecker products."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_adapters.families.transformed_lora import TransformedLoRA, TransformedLoRAConfig, modes, start_bonds
from tests.probes import plan_of


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


double = pytest.mark.usefixtures("_double")


def adapter(out_features: int, in_features: int, **options: Any) -> TransformedLoRA:
    return TransformedLoRA(torch.empty(out_features, in_features), TransformedLoRAConfig(rank=1, **options))


def starts(made: TransformedLoRA) -> list[Tensor]:
    """I ⊗ Q_d, (J_d, J_d, R, R), of each core."""
    bonds = start_bonds(made.config.transform_rank, made.config.start)
    return [torch.eye(size)[..., None, None] * bond for size, bond in zip(made.in_modes, bonds, strict=True)]


@torch.no_grad()
def set_cores(made: TransformedLoRA, *cores: Tensor) -> None:
    """Make `cores` (J, J, R, R) the last cores of T; those before them pass the bond through."""
    ring = made.config.transform_rank
    whole = [torch.eye(ring)[None, None]] * (3 - len(cores)) + [core.to(torch.get_default_dtype()) for core in cores]
    for value, core, start in zip(made.E, whole, starts(made), strict=True):
        value.copy_(core - start)


def transform(made: TransformedLoRA) -> Tensor:
    eye = torch.eye(made.in_features)
    return eye + made.input_delta(eye).t()


def from_definition(made: TransformedLoRA) -> Tensor:
    """T, entry by entry: tr(C_1[i_1, j_1] C_2[i_2, j_2] C_3[i_3, j_3])."""
    cores = [(value + start).detach() for value, start in zip(made.E, starts(made), strict=True)]
    digits = list(itertools.product(*(range(size) for size in made.in_modes)))
    rows = []
    for i in digits:
        products = (cores[0][i[0], j[0]] @ cores[1][i[1], j[1]] @ cores[2][i[2], j[2]] for j in digits)
        rows.append(torch.stack([product.trace() for product in products]))
    return torch.stack(rows)


@double
def test_kronecker_literal() -> None:
    made = adapter(6, 4, transform_rank=1)
    first, second = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0, 1], [1, 0]])
    set_cores(made, first[..., None, None], second[..., None, None])
    expected = torch.tensor([[0, 1, 0, 2], [1, 0, 2, 0], [0, 3, 0, 4], [3, 0, 4, 0]]).double()
    torch.testing.assert_close(transform(made).detach(), expected)
    x = torch.tensor([1.0, 2, 3, 4])
    torch.testing.assert_close((x + made.input_delta(x)).detach(), torch.tensor([10.0, 7, 22, 15]))


@double
@pytest.mark.parametrize("start", ["broken", "paper"])
def test_ring_literal(start: str) -> None:
    made = adapter(6, 4, transform_rank=2, start=start)
    set_cores(made, torch.arange(16).view(2, 2, 2, 2), (torch.arange(16) % 5).view(2, 2, 2, 2))
    rows = [[13, 7, 37, 35], [11, 10, 43, 46], [61, 63, 85, 91], [75, 82, 107, 118]]
    torch.testing.assert_close(transform(made).detach(), torch.tensor(rows).double())
    x = torch.tensor([1.0, 2, 3, 4])
    torch.testing.assert_close((x + made.input_delta(x)).detach(), torch.tensor([278.0, 344, 806, 1032]))


@double
def test_residual_ring_literal() -> None:
    made = TransformedLoRA(torch.empty(4, 4), TransformedLoRAConfig(transform_rank=0, residual="tensor_ring", rank=2))
    cores = torch.arange(8).view(2, 2, 2)
    values = ([torch.eye(2)[None], cores, cores % 3], [torch.eye(2)[None], cores % 4, cores % 5])
    with torch.no_grad():
        for ring, literal in zip((made.ring_out, made.ring_in), values, strict=True):
            for value, core in zip(ring, literal, strict=True):
                value.copy_(core)
    rows = [[44, 26, 44, 26], [89, 57, 89, 57], [152, 118, 152, 118], [313, 273, 313, 273]]
    expected = torch.tensor(rows).double() / 2**0.5  # alpha / sqrt(rank)
    torch.testing.assert_close(made.delta_weight(torch.zeros(4, 4)).detach(), expected)


@double
@pytest.mark.parametrize("ring", [1, 2, 3])
@pytest.mark.parametrize(("out_features", "in_features"), [(10, 24), (24, 12), (7, 30)])
def test_transform_is_its_definition(ring: int, out_features: int, in_features: int) -> None:
    made = adapter(out_features, in_features, transform_rank=ring)
    for value in made.parameters():
        nn.init.normal_(value, std=0.3)
    T = from_definition(made)
    torch.testing.assert_close(transform(made).detach(), T, rtol=0, atol=1e-12)
    W = torch.randn(out_features, in_features)
    up, down = made.low_rank()
    torch.testing.assert_close(made.delta_weight(W), W @ (T - torch.eye(in_features)) + up @ down, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ring", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("residual", ["lora", "tensor_ring"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("start", ["broken", "paper"])
def test_start_is_exact(ring: int, residual: str, dtype: torch.dtype, start: str) -> None:
    linear = nn.Linear(48, 20).to(dtype)
    made = adapter(20, 48, transform_rank=ring, residual=residual, start=start)
    x = torch.randn(2, 7, 48).to(dtype)
    assert torch.equal(plan_of([(made, 1.0)])(linear, x), linear(x))


@pytest.mark.parametrize("ring", range(1, 17))
@pytest.mark.parametrize("start", ["broken", "paper"])
def test_bonds_close_the_ring(ring: int, start: str) -> None:
    bonds = start_bonds(ring, start)
    assert float((bonds[0] @ bonds[1] @ bonds[2]).trace()) == pytest.approx(1, abs=1e-5)
    assert float(bonds.abs().max()) <= 2.4 / ring
    assert (len(bonds[0].unique()) > ring) == (start == "broken" and ring > 1)


def test_cross_attention_with_bias_equals_the_merged_weight() -> None:
    linear = nn.Linear(768, 320).requires_grad_(False)
    made = TransformedLoRA(linear.weight, TransformedLoRAConfig(transform_rank=2, rank=4))
    for value in made.parameters():
        nn.init.normal_(value, std=0.01)
    x = torch.randn(2, 77, 768)
    y, merged = plan_of([(made, 1.0)])(linear, x), linear.weight + made.delta_weight(linear.weight)
    expected = F.linear(x, merged, linear.bias)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(y)
    values = list(made.parameters())
    for found, reference in zip(
        torch.autograd.grad(y, values, upstream), torch.autograd.grad(expected, values, upstream), strict=True
    ):
        assert float((found - reference).norm() / reference.norm()) < 1e-4


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ring_residual_is_a_lora_of_squared_rank(rank: int) -> None:
    made = TransformedLoRA(torch.empty(60, 48), TransformedLoRAConfig(rank=rank, residual="tensor_ring", alpha=3.0))
    for value in made.ring_out:
        nn.init.normal_(value)
    up, down = (factor.detach().double() for factor in made.low_rank())
    assert up.shape == (60, rank**2)
    assert torch.linalg.matrix_rank(up @ down, rtol=1e-6) == rank**2


def test_modes() -> None:
    """The authors' table, and the rule for other widths."""
    table = {320: (4, 8, 10), 640: (8, 8, 10), 768: (8, 8, 12), 1280: (8, 10, 16), 2048: (8, 16, 16)}
    rule = {896: (8, 8, 14), 1152: (8, 12, 12), 2432: (8, 16, 19), 3072: (12, 16, 16), 5120: (16, 16, 20), 7: (1, 1, 7)}
    for size, factors in {**table, **rule}.items():
        assert modes(size) == factors


def kronecker_gap(T: Tensor, sizes: tuple[int, int, int]) -> float:
    """Relative distance to the nearest Kronecker product of (first two modes) and (last mode)."""
    m, n = sizes[0] * sizes[1], sizes[2]
    values = torch.linalg.svdvals(T.view(m, n, m, n).permute(0, 2, 1, 3).reshape(m * m, n * n))
    return float(values[1:].norm() / values.norm())


@pytest.mark.parametrize(
    ("ring", "start", "leaves"), [(2, "broken", True), (3, "broken", True), (2, "paper", False), (1, "broken", False)]
)
def test_ring_leaves_the_kronecker_products(ring: int, start: str, leaves: bool) -> None:
    """A fit of 200 steps to a random ring of rank 2, as in a toy training."""
    cores = [torch.randn(size, size, 2, 2) * 0.3 + torch.eye(size)[..., None, None] / 2 for size in (3, 4, 4)]
    target = torch.einsum("ijrs,klst,mntr->ikmjln", *cores).reshape(48, 48)
    made = adapter(48, 48, transform_rank=ring, start=start)
    optimizer = torch.optim.Adam(made.E.parameters(), lr=1e-2)
    for _ in range(200):
        loss = (transform(made) - target).square().sum() / (target - torch.eye(48)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    uneven = max(float((core - core.mean((2, 3), keepdim=True)).detach().abs().max()) for core in made.E)
    gap = kronecker_gap(transform(made).detach(), made.in_modes)
    if leaves:
        assert gap > 0.1
        assert loss.item() < 0.1
        assert uneven > 0.1
    else:
        assert gap < 1e-5
        assert loss.item() > 0.1
        assert uneven < 1e-6


def test_weight_decay_draws_to_the_identity() -> None:
    made = adapter(20, 24, transform_rank=2)
    for value in made.E:
        nn.init.normal_(value, std=0.1)
    before = float(made.input_delta(torch.eye(24)).detach().norm())
    optimizer = torch.optim.AdamW(made.parameter_groups(0.1), weight_decay=1.0)
    for _ in range(100):
        for value in made.parameters():
            value.grad = torch.zeros_like(value)
        optimizer.step()
    assert float(made.input_delta(torch.eye(24)).detach().norm()) < 0.02 * before


@pytest.mark.parametrize("ring", [1, 2, 4])
def test_first_step_is_as_long_for_any_ring(ring: int) -> None:
    """The learning rate of the transform is divided by the rank that multiplies the step.

    ‖Σ_d I ⊗ 1_d ⊗ I‖² = 24 (2 + 3 + 4) + 2 · 3 · 24 for modes of 2, 3 and 4, and matrices of ones.
    """
    made = adapter(24, 24, transform_rank=ring, start="paper")
    optimizer = torch.optim.SGD(made.parameter_groups(1e-3))
    for value in made.E:
        value.grad = torch.ones_like(value)
    optimizer.step()
    assert float(made.input_delta(torch.eye(24)).detach().norm()) == pytest.approx(1e-3 * 360**0.5, rel=0.01)


def test_small_differences_survive_bf16() -> None:
    """T - I is computed from the difference itself: kept beside the ones of I, 32 % of it would be rounded away."""
    made = adapter(48, 48, transform_rank=2)
    for value in made.E:
        nn.init.normal_(value, std=1e-4)
    exact = made.input_delta(torch.eye(48)).detach()
    rounded = made.input_delta(torch.eye(48).bfloat16()).detach().float()
    assert float((rounded - exact).norm() / exact.norm()) < 0.01


def test_penalty() -> None:
    made = adapter(20, 24, transform_rank=2, identity_penalty=0.5)
    start = made.penalty()
    assert start is not None
    start.backward()
    assert start.item() == 0
    assert all(
        torch.equal(value.grad, torch.zeros_like(value)) for value in made.E
    )  # a norm has no slope at 0, not NaN
    with torch.no_grad():
        made.E[0][0, 0, 0, 0], made.E[0][1, 0, 0, 0], made.E[2][0, 0, 1, 0] = 3.0, 4.0, -2.0
    assert made.penalty().item() == pytest.approx(0.5 * (5 + 2))
    assert adapter(20, 24, transform_rank=2).penalty() is None
    assert adapter(20, 24, transform_rank=0, identity_penalty=0.5).penalty() is None


def test_scaling_is_of_the_residual_alone() -> None:
    values = [
        TransformedLoRA(torch.empty(20, 24), TransformedLoRAConfig(rank=4, alpha=3.0, rslora=rslora)).scaling
        for rslora in (True, False)
    ]
    assert values == [1.5, 0.75]
