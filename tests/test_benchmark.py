"""Cost of adapters at the size of SD1.5, in operations: exact, and the same on every machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train.benchmarks.methods import REFERENCE
from train.benchmarks.models import unet as make_unet
from train.benchmarks.ops import count_ops, with_adapters
from train.benchmarks.speed import SpeedOptions, keep, measure, table, where


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


def test_speed_compares_with_peft(tmp_path: Path) -> None:
    """One row on the smallest shapes: what is counted is plausible and written down, an unknown row is refused."""
    options = SpeedOptions(side=8, train_batch_size=1, repeats=1, only=("lora",))
    result = measure(options)
    assert list(result["rows"]) == ["lora", REFERENCE]
    ours, peft = result["rows"].values()
    assert ours["trained"] == peft["trained"]
    assert 0 < ours["saved"] < ours["peak"]
    assert ours["launches"] > 500
    assert peft["wall_ratio"] == peft["peak_ratio"] == 1
    counted = measure(SpeedOptions(device="none", side=8, train_batch_size=1, only=("lora",)))
    assert [row["saved"] for row in counted["rows"].values()] == [row["saved"] for row in result["rows"].values()]
    keep(result, tmp_path / "speed.json")
    (kept,) = json.loads((tmp_path / "speed.json").read_text()).values()
    assert table(kept) == table(result)
    assert where(kept) == where(result)
    with pytest.raises(ValueError, match=r"--only lroa: no such row; there are .*lora"):
        measure(SpeedOptions(only=("lroa",)))
