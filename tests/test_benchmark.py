"""Cost of adapters at the size of SD1.5, in operations: exact, and the same on every machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from diffusion_adapters.adapter_set import AdapterSet
from diffusion_adapters.hooks import find_adapter_set
from train.benchmarks import inference
from train.benchmarks.blends import SHAPES, blends, names
from train.benchmarks.inference import InferenceOptions
from train.benchmarks.inference_report import REPORT, RESULTS
from train.benchmarks.methods import REFERENCE
from train.benchmarks.models import unet as make_unet
from train.benchmarks.ops import OpCounter, count_ops
from train.benchmarks.speed import REPORT as SPEED
from train.benchmarks.speed import SpeedOptions, measure


@pytest.fixture(scope="module")
def bare() -> OpCounter:
    return count_ops(make_unet("sd15", "meta"))


@pytest.mark.parametrize("adapters", [1, 4])
def test_low_rank_adapters_cost_one_operation_per_projection_and_one_per_input(bare: OpCounter, adapters: int) -> None:
    unet = make_unet("sd15", "meta")
    blends([adapters])[f"ours, {adapters}"].adapt(unet, 16)
    counted = count_ops(unet)
    adapter_set = find_adapter_set(unet)
    assert list(adapter_set.weights) == names(adapters)
    inputs = 16 * 2 + 16 * 3  # q k v, out of self-attention; q, k v, out of cross-attention
    assert counted.total == bare.total + len(adapter_set.projections()) + inputs <= 1.30 * bare.total
    assert round(counted.products / bare.products, 2) <= 2.13
    kept = next(iter(json.loads(RESULTS.read_text()).values()))["rows"]  # of `benchmark.py --inference --write`
    for name, count in (("bare", bare), (f"ours, {adapters}", counted)):
        assert (kept[name]["operations"], kept[name]["products"]) == (count.total, count.products)


def test_idle_adapters_cost_nothing(bare: OpCounter) -> None:
    unet = make_unet("sd15", "meta")
    blends([2])["ours, 2 idle"].adapt(unet, 4)
    assert count_ops(unet).counts == bare.counts


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
    dataclasses.replace(SPEED, path=tmp_path / "speed.json").keep(result)
    (kept,) = json.loads((tmp_path / "speed.json").read_text()).values()
    assert SPEED.text(kept) == SPEED.text(result)
    with pytest.raises(ValueError, match=r"--only lroa: no such row; there are .*lora"):
        measure(SpeedOptions(only=("lroa",)))


def test_inference_compares_with_peft(tmp_path: Path) -> None:
    """Every row on the smallest shapes, what is counted there and what is not; unheard-of numbers are refused."""
    result = inference.measure(InferenceOptions(preset="pocket", side=8, adapters=(2,), rank=4, repeats=1, changes=1))
    rows = result["rows"]
    assert list(rows) == ["bare", "ours, 2", "PEFT, 2", *(f"ours, 2 {kind}" for kind in ("idle", "fused", *SHAPES))]
    for name in ("ours, 2 idle", "ours, 2 fused"):
        assert rows[name]["operations"] == rows["bare"]["operations"]
    assert rows["bare"]["operations"] < rows["ours, 2"]["operations"] < rows["PEFT, 2"]["operations"]
    assert rows["bare"]["held"] == 0
    values = 4 * 4 * sum(sum(p.shape) for p in _projections())
    assert rows["PEFT, 2"]["held"] == rows["ours, 2 idle"]["held"] == 2 * values
    assert set(result["load"]) == {"ours", "PEFT"}
    counted = inference.measure(InferenceOptions(preset="pocket", adapters=(2,), rank=4, device="none"))
    extra = {name: row["operations"] - counted["rows"]["bare"]["operations"] for name, row in counted["rows"].items()}
    assert extra == {name: rows[name]["operations"] - rows["bare"]["operations"] for name in extra}
    for one in (result, counted):
        dataclasses.replace(REPORT, path=tmp_path / "inference.json").keep(one)
        kept = json.loads((tmp_path / "inference.json").read_text())
        again = kept[f"pocket {one['settings']['device']}"]
        assert REPORT.text(again) == REPORT.text(one)
    with pytest.raises(ValueError, match=r"adapters must be at least 1"):
        InferenceOptions(adapters=(0,))


def _projections() -> list[Any]:
    unet = make_unet("pocket", "meta")
    return [unet.get_submodule(path).weight for path in AdapterSet(unet).projections()]
