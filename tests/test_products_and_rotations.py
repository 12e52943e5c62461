"""What the families of products and rotations are made of: sizes, orthogonality, norms, and literal small cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_adapters import FAMILIES
from tests.probes import stir


def made(family: str, weight: Tensor, **options: Any) -> Any:
    return FAMILIES[family](weight, FAMILIES[family].Config(**options))


@torch.no_grad()
def test_a_hadamard_product_by_hand() -> None:
    adapter = made("loha", torch.zeros(2, 2), rank=1, alpha=3.0)
    for name, value in {"B1": [[1.0], [2.0]], "A1": [[1.0, 3.0]], "B2": [[2.0], [5.0]], "A2": [[1.0, -1.0]]}.items():
        getattr(adapter, name).copy_(torch.tensor(value))
    assert adapter.delta_weight(torch.zeros(2, 2)).tolist() == [[6.0, -18.0], [30.0, -90.0]]


@torch.no_grad()
def test_a_kronecker_product_by_hand() -> None:
    adapter = made("lokr", torch.zeros(4, 2), rank=1, alpha=2.0, out_factor=2, in_factor=2, full_matrix=True)
    adapter.C.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    adapter.D.copy_(torch.tensor([[1.0], [3.0]]))
    assert adapter.delta_weight(torch.zeros(4, 2)).tolist() == [[2.0, 4.0], [6.0, 12.0], [0.0, -2.0], [0.0, -6.0]]


@pytest.mark.parametrize(
    ("options", "left", "right"),
    [
        ({"out_factor": 8, "in_factor": 4}, (8, 4), (12, 16)),
        ({"out_factor": 7, "in_factor": 1}, (6, 1), (16, 64)),
        ({"out_factor": 96, "in_factor": 64}, (48, 32), (2, 2)),  # room for the rank
    ],
)
def test_sizes_of_the_factors(options: dict[str, int], left: tuple[int, int], right: tuple[int, int]) -> None:
    adapter = made("lokr", torch.zeros(96, 64), rank=2, **options)
    assert tuple(adapter.C.shape) == left
    assert (adapter.B.shape[0], adapter.A.shape[1]) == right


@torch.no_grad()
def test_a_part_of_a_larger_product() -> None:
    whole = made("lokr", torch.zeros(24, 8), rank=2, out_factor=4)
    part = made("lokr", torch.zeros(9, 8), rank=2, out_factor=4, before=7, after=8)
    stir(whole)
    part.load_state_dict(whole.state_dict())
    delta = whole.delta_weight(torch.zeros(24, 8))[7:16]
    assert torch.equal(part.delta_weight(torch.zeros(9, 8)), delta)
    x = torch.randn(3, 8)
    assert torch.allclose(part(x, x, None), x @ delta.t(), atol=1e-5)


def turn(adapter: Any, side: str = "out") -> Tensor:
    """T, (size, size)."""
    eye = torch.eye(adapter.size)
    delta = adapter.delta_weight(eye).detach()
    return eye + delta


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("oft", {"block_size": 4, "side": "out"}),
        ("oft", {"block_size": 5}),
        ("boft", {"block_size": 4, "stages": 3}),
        ("boft", {"block_size": 2, "stages": 1}),
    ],
)
def test_rotations_are_orthogonal(family: str, options: dict[str, Any]) -> None:
    adapter = made(family, torch.eye(16), **options)
    stir(adapter)
    found = turn(adapter)
    assert torch.allclose(found.t() @ found, torch.eye(16), atol=1e-5)
    assert (found - torch.eye(16)).abs().max() > 0.1


@torch.no_grad()
def test_blocks_reach_as_far_as_they_say() -> None:
    """One stage mixes blocks, more reach channels further apart."""
    block = made("oft", torch.eye(16), block_size=4)
    stir(block)
    assert torch.equal(turn(block) != 0, torch.block_diag(*[torch.ones(4, 4)] * 4) != 0)
    reach = []
    for stages in (1, 2, 3):
        adapter = made("boft", torch.eye(16), block_size=4, stages=stages)
        stir(adapter)
        reach.append(int((turn(adapter)[0] != 0).sum()))
    assert reach[0] == 4
    assert reach == sorted(set(reach))


@torch.no_grad()
def test_a_series_in_place_of_the_inverse() -> None:
    exact = made("oft", torch.eye(8), block_size=8)
    exact.K.normal_(std=0.02)
    errors = []
    for powers in (2, 4, 8):
        adapter = made("oft", torch.eye(8), block_size=8, powers=powers)
        adapter.load_state_dict(exact.state_dict())
        errors.append(float((turn(adapter) - turn(exact)).norm()))
    assert errors[0] > 10 * errors[1] > 10 * errors[2]


@pytest.mark.parametrize(("family", "name"), [("oft", "m"), ("boft", "r")])
@torch.no_grad()
def test_channels_are_scaled_too(family: str, name: str) -> None:
    adapter = made(family, torch.eye(8), block_size=4, rescale=True)
    stir(adapter)
    scale = 1 + getattr(adapter, name)
    assert torch.allclose(turn(adapter).norm(dim=1), scale.abs(), atol=1e-5)


@torch.no_grad()
def test_rows_have_the_norms_that_are_trained() -> None:
    weight = torch.randn(12, 8)
    adapter = made("dora", weight, rank=2, alpha=5.0)
    stir(adapter)
    found = weight + adapter.delta_weight(weight)
    assert torch.allclose(found.norm(dim=1), adapter.m.abs(), rtol=1e-4)
    direction = weight + 2.5 * adapter.B @ adapter.A
    assert torch.allclose((found * direction).sum(dim=1).abs(), found.norm(dim=1) * direction.norm(dim=1), rtol=1e-4)
