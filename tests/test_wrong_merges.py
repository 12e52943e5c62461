"""What cannot be merged attaches nothing, and is told in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_adapters import AdapterWeight, add_adapter, add_tokens, list_adapters, merge_adapters
from diffusion_adapters.attach import adapter_sets
from diffusion_adapters.linalg import product_norm, product_svd
from tests.hosts import pipeline
from tests.merging import twins

TO_Q = "transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tie"}, r"unknown merge method 'tie', did you mean 'ties'"),
        ({"method": "ties", "desnity": 0.5}, r"unknown option 'desnity' for SignConfig, did you mean 'density'"),
        ({"method": "linear", "density": 0.5}, r"unknown option 'density'"),
        ({"method": "ties", "density": 0.0}, r"density must be greater than 0"),
        ({"method": "dare_ties", "density": 1.5}, r"density must be at most 1"),
        ({"rank": 0}, r"rank must be at least 1"),
        ({"energy": 2.0}, r"energy must be at most 1"),
        ({"weights": [1.0]}, r"1 adapter_weights for 2 adapters"),
        ({"weights": AdapterWeight(end=0.5)}, r"'a' cannot be merged: its weight depends on the denoising step"),
        ({"method": "bands", "edges": (0.3, 0.6)}, r"3 bands for 2 adapters: give gains, 2 times 3 numbers"),
        ({"method": "bands", "edges": (0.6, 0.3)}, r"edges must ascend"),
        ({"method": "bands", "gains": (1.0, 2.0, 3.0)}, r"3 gains for 2 adapters of 2 bands each: give 4"),
    ],
)
def test_wrong_merges_attach_nothing(options: dict[str, Any], message: str) -> None:
    model = twins()
    with pytest.raises(ValueError, match=message):
        merge_adapters(model, ["a", "b"], "new", **options)
    assert list(list_adapters(model)) == ["a", "b"]


def test_wrong_names_and_values_attach_nothing() -> None:
    model = twins()
    for names, new, message in (
        (["a", "c"], "new", "unknown adapter 'c'"),
        (["a", "b"], "a", "already in use"),
        (["a", "b"], "x.y", "must be non-empty, without"),
        ([], "new", "names is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_adapters(model, names, new)
    pipe = pipeline()
    add_adapter(pipe, "a")
    add_tokens(pipe, "a", words=("NEW",))
    with pytest.raises(ValueError, match="adapter 'a' has new tokens, which belong to it alone"):
        merge_adapters(pipe, ["a"], "new")
    with torch.no_grad():
        next(iter(adapter_sets(model).values())).of("a")[TO_Q].A.fill_(float("inf"))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"transformer\..*not finite; nothing was attached"):
        merge_adapters(model, ["a", "b"], "new", method="cat")
    assert list(list_adapters(model)) == ["a", "b"]


@pytest.mark.parametrize("shape", [(7, 3, 9), (5, 8, 6)])
def test_svd_of_a_product(shape: tuple[int, int, int]) -> None:
    up, down = torch.randn(shape[0], shape[1]), torch.randn(shape[1], shape[2])
    b, a = product_svd(up, down, None)
    torch.testing.assert_close(b @ a, up @ down, rtol=1e-5, atol=1e-5)
    assert b.shape[1] == min(shape)
    assert product_norm(up, down) == pytest.approx(float((up @ down).norm()), rel=1e-5)
    values = torch.linalg.svdvals(up @ down)
    b, a = product_svd(up, down, 2)
    assert float((b @ a - up @ down).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-4)
    b, a = product_svd(up, down, None, 0.9)
    lost = float((b @ a - up @ down).square().sum() / values.square().sum())
    assert lost <= 0.1
    assert lost + float(values[b.shape[1] - 1] ** 2 / values.square().sum()) > 0.1
