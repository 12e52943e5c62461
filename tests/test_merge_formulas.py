"""Merging: each method gives the ΔW of its formula."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from diffusion_adapters import MERGERS, merge_adapters
from diffusion_adapters.sources import Delta
from tests.exported import wanted
from tests.merging import WEIGHTS, mixed


def of_matrix(name: str, rows: list[list[float]], weight: float = 1.0) -> Delta:
    """An adapter with this ΔW, as factors."""
    matrix = torch.tensor(rows)
    return Delta(name, weight, (matrix, torch.eye(matrix.shape[1])))


def merged(method: str, *deltas: Delta, **options: Any) -> Tensor:
    """What a method makes of these at one projection."""
    kind = MERGERS[method]
    merger = kind(kind.Config.from_mapping(options))
    merger.check([delta.name for delta in deltas])
    factors = merger.merge(deltas, "unet.somewhere")
    return factors.up @ factors.down


A = [[1.0, -2.0, 0.1], [0.3, 4.0, -0.2]]
B = [[-3.0, 1.0, 0.2], [0.5, 2.0, 0.1]]


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        *((method, {}, [[-3.5, -0.5, 0.4], [1.05, 7.0, -0.05]]) for method in ("linear", "cat", "svd")),
        # of each the half that is largest: 1 -2 4 and -3 1 2
        ("magnitude_prune", {"density": 0.5}, [[1 - 4.5, -2 + 1.5, 0.0], [0.0, 4 + 3.0, 0.0]]),
        # the signs of 1 - 3, -2 + 1 and 4 + 2 win; of what agrees with them, the mean
        ("ties", {"density": 0.5}, [[-4.5, -2.0, 0.0], [0.0, (4 + 3.0) / 2, 0.0]]),
        # one against one is a plus
        ("ties", {"density": 1.0, "majority_sign_method": "frequency"}, [[1.0, 1.5, 0.2], [0.525, 3.5, 0.15]]),
        ("dare_linear", {"density": 1.0}, [[-3.5, -0.5, 0.4], [1.05, 7.0, -0.05]]),
        ("dare_ties", {"density": 1.0}, [[-4.5, -2.0, 0.2], [0.525, 3.5, -0.2]]),
    ],
)
def test_by_hand(method: str, options: dict[str, Any], expected: list[list[float]]) -> None:
    found = merged(method, of_matrix("a", A), of_matrix("b", B, 1.5), **options)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # a reads e1 and writes e1, b reads e1 + e2 and writes e2
        ({"sides": "rows"}, [[0.5, -0.5], [0.0, 1.0]]),
        ({"sides": "columns"}, [[1.0, 0.0], [1.0, 1.0]]),
        ({"sides": "both"}, [[0.5, -0.5], [0.0, 1.0]]),
        ({"sides": "rows", "strength": 0.5}, [[0.75, -0.25], [0.5, 1.0]]),
        ({"strength": 0.0}, [[1.0, 0.0], [1.0, 1.0]]),
    ],
)
def test_orthogonal_by_hand(options: dict[str, Any], expected: list[list[float]]) -> None:
    a, b = of_matrix("a", [[1.0, 0.0], [0.0, 0.0]]), of_matrix("b", [[0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(merged("orthogonal", a, b, **options), torch.tensor(expected), rtol=0, atol=1e-6)
    twice = merged("orthogonal", a, dataclasses.replace(a, name="b"), **options)
    rest = 1 - options.get("strength", 1.0)
    both = 2 if options.get("sides") == "both" else 1
    torch.testing.assert_close(twice, 2 * rest**both * a.full(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4.0, 0.0, 0.0, 3.0]),  # 4 makes 16/17 of the first, 5 makes 25/34 of the second
        ({"edges": (0.5,), "gains": (1.0, 0.0, 0.0, 1.0)}, [4.0, 0.0, 0.0, 3.0]),
        ({"edges": (0.5,), "gains": (0.0, 2.0, 1.0, 0.0)}, [0.0, 2.0, 5.0, 0.0]),
        ({"edges": (0.95,)}, [4.0, 1.0, 0.0, 0.0]),
        ({"edges": (0.2, 0.9), "gains": (1.0, 0.5, 0.0, 0.0, 0.0, 1.0)}, [4.0, 0.0, 0.0, 0.0]),
        ({"edges": (0.2, 0.8), "gains": (1.0, 0.0, 0.25, 0.0, 1.0, 0.0)}, [4.0, 0.25, 0.0, 3.0]),
    ],
)
def test_bands_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    a = of_matrix("a", torch.diag(torch.tensor([4.0, 1.0, 0.0, 0.0])).tolist())
    b = of_matrix("b", torch.diag(torch.tensor([0.0, 0.0, 5.0, 3.0])).tolist())
    found = merged("bands", a, b, **options)
    torch.testing.assert_close(found, torch.diag(torch.tensor(expected)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_pruning_is_that_of_peft(method: str) -> None:
    model = mixed()
    names = list(WEIGHTS)
    options = {"density": 0.3, "rank": 64}
    merge_adapters(model, names, "new", method=method, weights=WEIGHTS, **options)
    found, own = wanted(model, "new"), {name: wanted(model, name) for name in names}
    again = mixed()
    merge_adapters(again, names, "new", method=method, weights=WEIGHTS, **options)
    assert all(torch.equal(found[key], delta) for key, delta in wanted(again, "new").items())
    for key, delta in found.items():
        tensors, weights = [own[name][key] for name in names], torch.tensor(list(WEIGHTS.values()))
        if not method.startswith("dare"):
            expected = getattr(merge_utils, method)(tensors, weights, 0.3)
            torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5)
        elif method == "dare_linear":  # each number is one of the sums that dropping leaves
            parts = torch.stack([weight * tensor / 0.3 for weight, tensor in zip(weights, tensors, strict=True)])
            kept = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(names))
            sums = torch.einsum("kn,nij->kij", kept, parts)
            assert float((sums - delta).abs().amin(0).max()) < 1e-4
    if method.startswith("dare"):
        other = mixed()
        merge_adapters(other, names, "new", method=method, weights=WEIGHTS, seed=1, **options)
        assert not any(torch.equal(found[key], delta) for key, delta in wanted(other, "new").items())


def test_dropping_keeps_the_mean() -> None:
    torch.manual_seed(3)
    matrix = torch.randn(3, 4)
    delta = of_matrix("a", matrix.tolist())
    before = torch.get_rng_state()
    draws = [merged("dare_linear", delta, density=0.5, seed=seed) for seed in range(400)]
    assert torch.equal(torch.get_rng_state(), before)
    kept = torch.stack(draws).abs().gt(1e-4).float().mean()
    assert float(kept) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(torch.stack(draws).mean(0), matrix, rtol=0.25, atol=0.15)
