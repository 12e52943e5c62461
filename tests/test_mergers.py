"""Merging: each method gives the ΔW of its formula, as an ordinary adapter that knows where it comes from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from diffusion_adapters import (
    FAMILIES,
    MERGERS,
    AdapterWeight,
    add_adapter,
    add_text_adapter,
    add_tokens,
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
from diffusion_adapters.linalg import product_norm, product_svd
from diffusion_adapters.safe import read_safetensors
from diffusion_adapters.sources import Delta
from tests.hosts import build, distance, pipeline, run, small, stir
from tests.test_dialects import assert_same, wanted

HOST = "flux"
TO_Q = "transformer_blocks.0.attn.to_q"
WEIGHTS = {"loldu": 0.7, "lora": -0.5, "transformed_lora": 0.4, "wara": 1.2}

every_method = pytest.mark.parametrize("method", MERGERS)


def mixed(*families: str, **options: Any) -> Any:
    """A tiny transformer with one stirred adapter of each family, under its name."""
    model = build(HOST)
    torch.manual_seed(0)
    for i, family in enumerate(families or FAMILIES):
        stir(add_adapter(model, family, family, **small(family), **options).parameters(), seed=i)
    return model


def twins(rank: int = 2) -> Any:
    """A tiny transformer with the LoRAs `a` and `b`, of half as many ranks."""
    model = build(HOST)
    for name, own in (("a", rank), ("b", rank // 2)):
        stir(add_adapter(model, name, rank=own).parameters(), seed=ord(name))
    return model


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


# ---- each method by its formula --------------------------------------------------------------------------------------


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


# ---- properties ------------------------------------------------------------------------------------------------------


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


# ---- what a merged adapter is ----------------------------------------------------------------------------------------


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


# ---- what is wrong ---------------------------------------------------------------------------------------------------


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
