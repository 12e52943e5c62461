"""Cost of adapters at the size of SD1.5, in operations: exact, and the same on every machine."""

from __future__ import annotations

import pytest

from train.benchmarks.models import unet as make_unet
from train.benchmarks.ops import count_ops, with_adapters


@pytest.fixture(scope="module")
def bare() -> int:
    return count_ops(make_unet("sd15", "meta")).total


@pytest.mark.parametrize("adapters", [1, 4])
def test_low_rank_adapters_cost_two_operations_per_projection(bare: int, adapters: int) -> None:
    unet = make_unet("sd15", "meta")
    adapter_set = with_adapters(unet, adapters, rank=4)
    counted = count_ops(unet)
    assert counted.total == bare + 2 * len(adapter_set.projections())
    assert counted.total <= 1.36 * bare


def test_idle_adapters_cost_nothing(bare: int) -> None:
    unet = make_unet("sd15", "meta")
    adapter_set = with_adapters(unet, 2)
    adapter_set.set_weights({})
    assert count_ops(unet).total == bare
