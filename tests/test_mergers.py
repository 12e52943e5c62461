"""Merging: an ordinary adapter that knows where it comes from, and what the methods promise of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_adapters import (
    MERGERS,
    AdapterWeight,
    add_adapter,
    add_text_adapter,
    delete_adapters,
    export_lora,
    get_active_adapters,
    list_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
    set_adapters,
)
from diffusion_adapters.attach import adapter_sets
from diffusion_adapters.safe import read_safetensors
from tests.exported import assert_same, wanted
from tests.hosts import HOST, build, distance, pipeline, run, stir
from tests.merging import WEIGHTS, mixed, twins

TO_Q = "transformer_blocks.0.attn.to_q"

every_method = pytest.mark.parametrize("method", MERGERS)


@pytest.mark.parametrize("method", ["linear", "cat"])
def test_sums_are_exact_over_families(method: str) -> None:
    model = mixed()
    report = merge_adapters(model, list(WEIGHTS), "new", method=method, weights=WEIGHTS)
    assert report.exact
    assert_same(wanted(model, "new"), wanted(model, WEIGHTS), 2e-6)


def test_linear_stores_shared_directions_once() -> None:
    model = build(HOST)
    for name in "ab":
        torch.manual_seed(0)
        adapters = add_adapter(model, name, rank=3).of(name)
        stir(value for adapter in adapters.values() for value in adapter.parameters())
    assert merge_adapters(model, ["a", "b"], "cat", method="cat").rank == 6
    assert merge_adapters(model, ["a", "b"], "linear").rank == 3
    assert_same(wanted(model, "linear"), {key: 2 * delta for key, delta in wanted(model, "a").items()}, 1e-6)
    adapter_set = adapter_sets(model)["transformer"]
    both, one = adapter_set.of("cat")[TO_Q].low_rank(), adapter_set.of("a")[TO_Q].low_rank()
    assert both is not None
    assert one is not None
    assert torch.equal(both[0], torch.cat((one[0], one[0]), dim=1))
    assert torch.equal(both[1], torch.cat((one[1], one[1])))


@pytest.mark.parametrize("method", ["linear", "cat"])
def test_a_rank_or_an_energy_cuts_the_sum(method: str) -> None:
    """Of low-rank adapters alone, and with one among them that is not."""
    for model, names in ((twins(rank=4), ["a", "b"]), (mixed(), list(WEIGHTS))):
        assert merge_adapters(model, names, "cut", method=method, rank=3).rank == 3
        assert merge_adapters(model, names, "best", method="svd", rank=3).rank == 3
        assert_same(wanted(model, "cut"), wanted(model, "best"), 1e-4)
        loose = merge_adapters(model, names, "loose", method=method, energy=0.9)
        assert 0 < loose.relative_error <= (1 - 0.9) ** 0.5


@pytest.mark.parametrize("cut", [{}, {"rank": 1}, {"energy": 0.8}, {"energy": 0.99, "rank": 3}])
def test_svd_is_the_best_of_its_rank_and_tells_the_loss(cut: dict[str, Any]) -> None:
    model = twins(rank=4)
    report = merge_adapters(model, ["a", "b"], "new", method="svd", weights=[1.0, -0.5], **cut)
    found, lost, whole = wanted(model, "new"), 0.0, 0.0
    for key, delta in wanted(model, {"a": 1.0, "b": -0.5}).items():
        values = torch.linalg.svdvals(delta)
        shares = values.square().cumsum(0) / values.square().sum()
        rank = cut.get("rank", 4 if not cut else len(values))
        if "energy" in cut:
            rank = min(rank, int((shares < cut["energy"]).sum()) + 1)
        assert int(torch.linalg.matrix_rank(found[key], atol=1e-4)) == min(rank, 6)
        own = float((found[key] - delta).norm())
        assert own == pytest.approx(float(values[rank:].norm()), rel=1e-3, abs=1e-4)
        lost, whole = lost + own**2, whole + float(delta.square().sum())
    assert report.relative_error == pytest.approx((lost / whole) ** 0.5, rel=1e-3, abs=1e-6)
    assert not report.exact


def test_after_orthogonal_no_adapter_reacts_to_what_another_reacts_to() -> None:
    """ΔW of the merge, on the inputs that one adapter reacts to, is that adapter's alone; a sum bleeds."""
    model = twins()
    merge_adapters(model, ["a", "b"], "sum")
    merge_adapters(model, ["a", "b"], "rows", method="orthogonal", share=1.0)
    own = {name: wanted(model, name) for name in ("a", "b", "sum", "rows")}
    bleeding = response = 0.0
    for key in own["a"]:
        for name, other in (("a", "b"), ("b", "a")):
            reads = torch.linalg.svd(own[name][key])[2][: 2 if name == "a" else 1].t()
            without = own["rows"][key] @ reads
            beside = own[name][key] - own[name][key] @ _span(own[other][key])
            torch.testing.assert_close(without, beside @ reads, rtol=1e-3, atol=1e-4)
            bleeding += float(((own["sum"][key] - own[name][key]) @ reads).square().sum())
            response += float((own[name][key] @ reads).square().sum())
    assert bleeding > 0.05 * response


def _span(delta: Tensor) -> Tensor:
    """The projector on the row space."""
    values, right = torch.linalg.svd(delta)[1:]
    basis = right[: int((values > 1e-4 * values[0]).sum())]
    return basis.t() @ basis


@every_method
def test_one_adapter_alone_stays_what_it_is(method: str) -> None:
    model = mixed("wara")
    options = {"density": 1.0} if "density" in MERGERS[method].Config().as_dict() else {}
    merge_adapters(model, ["wara"], "new", method=method, weights=2.0, **options)
    assert_same(wanted(model, "new"), {key: 2 * delta for key, delta in wanted(model, "wara").items()}, 1e-5)


@every_method
def test_it_is_an_ordinary_adapter(tmp_path: Path, method: str) -> None:
    """Attached beside the others without acting; it acts, is saved, read again and exported as any other."""
    model = mixed()
    base = run(build(HOST), HOST)
    set_adapters(model, "lora", 0.3)
    before = run(model, HOST)
    report = merge_adapters(model, WEIGHTS, "new", method=method, energy=0.999)
    assert get_active_adapters(model) == {"lora": 0.3}
    assert torch.equal(run(model, HOST), before)
    info = list_adapters(model)["new"]
    assert (info.family, info.config.rank) == ("lora", report.rank)  # type: ignore[attr-defined]
    set_adapters(model, "new")
    drawn = run(model, HOST)
    save_adapter(model, "new", tmp_path / "new.safetensors")
    again = build(HOST)
    load_adapter(again, tmp_path / "new.safetensors", "read")
    assert torch.equal(run(again, HOST), drawn)
    assert list_adapters(again)["read"].provenance == info.provenance
    made = info.provenance
    assert made["method"] == method
    assert made["options"]["energy"] == 0.999
    assert [(own["name"], own["family"], own["weight"]) for own in made["sources"]] == [
        (name, name, weight) for name, weight in WEIGHTS.items()
    ]
    save_adapter(model, "wara", tmp_path / "wara.safetensors")
    assert made["sources"][-1]["sha256"] == read_safetensors(tmp_path / "wara.safetensors")[1]["sshs_model_hash"]
    assert export_lora(model, "new", tmp_path / "lora.safetensors").relative_error == 0
    stock = build(HOST)
    stock.load_lora_adapter(str(tmp_path / "lora.safetensors"))  # type: ignore[operator]
    assert distance(run(stock, HOST), drawn, base) < 1e-4
    delete_adapters(model, [*WEIGHTS, "new"])
    assert torch.equal(run(model, HOST), base)


def test_text_encoders_are_merged_too(tmp_path: Path) -> None:
    pipe = pipeline()
    for i, (name, rank) in enumerate((("a", 2), ("b", 3))):
        stir([*add_adapter(pipe, name).parameters(), *add_text_adapter(pipe, name, rank=rank, alpha=5.0)], seed=i)
    stir(add_adapter(pipe, "c").parameters(), seed=9)
    weights: dict[str, Any] = {"a": 0.5, "b": AdapterWeight(2.0, scopes={"text_encoder": -0.25}), "c": 1.0}
    merge_adapters(pipe, weights, "new", method="cat")
    expected = wanted(pipe, weights)
    assert any(key.startswith("text_encoder") for key in expected)
    assert_same(wanted(pipe, "new"), expected, 1e-6)
    save_adapter(pipe, "new", tmp_path / "new.safetensors")
    again = pipeline()
    load_adapter(again, tmp_path / "new.safetensors", "new")
    assert_same(wanted(again, "new"), expected, 1e-6)


def test_adapters_need_not_be_on_the_same_projections() -> None:
    model = build(HOST)
    stir(add_adapter(model, "a", target_modules="to_q").parameters())
    stir(add_adapter(model, "b", "transformed_lora", rank=2, target_modules=("to_q", "to_k")).parameters())
    merge_adapters(model, ["a", "b"], "new")
    assert_same(wanted(model, "new"), wanted(model, ["a", "b"]), 1e-5)
    assert list_adapters(model)["new"].target_modules == ("to_q", "to_k")
    merge_adapters(model, {"a": 1.0, "b": {"to_q": 0.0}}, "other", method="orthogonal")
    one = wanted(model, "a")
    found = wanted(model, "other")
    for key, delta in one.items():
        torch.testing.assert_close(found[key], delta, rtol=1e-4, atol=1e-5)


def test_more_ranks_than_a_projection_has_are_no_more_than_it_has() -> None:
    model = build("unet_sd15")
    for name in ("a", "b", "c"):
        stir(add_adapter(model, name, rank=8).parameters(), seed=ord(name))
    report = merge_adapters(model, ["a", "b", "c"], "new", method="cat")
    assert report.exact
    assert_same(wanted(model, "new"), wanted(model, ["a", "b", "c"]), 1e-5)
