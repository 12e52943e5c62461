"""Export: stock diffusers reads the file and draws the same picture, or the stated error is the true one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from diffusion_adapters import FAMILIES, AdapterSet, add_adapter, export_lora
from diffusion_adapters.safe import read_safetensors
from tests.hosts import adapt, build, distance, pipeline, run, sample, small, stir

HOST = "flux"

every_family = pytest.mark.parametrize("family", FAMILIES)


def is_low_rank(adapter_set: AdapterSet, name: str) -> bool:
    return not any(a.transforms_input or a.adds_output for a in adapter_set.of(name).values())


def deltas(adapter_set: AdapterSet, name: str) -> dict[str, Tensor]:
    """ΔW of each projection, at weight 1."""
    projections = adapter_set.projections()
    with torch.no_grad():
        return {
            path: adapter.delta_weight(projections[path].base.weight.detach().float())
            for path, adapter in adapter_set.of(name).items()
        }


def products(file: Path, component: str = "transformer") -> dict[str, Tensor]:
    """B A of each projection of a LoRA file."""
    tensors, _ = read_safetensors(file)
    paths = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    assert len(tensors) == 2 * len(paths)
    return {
        path.removeprefix(f"{component}."): tensors[f"{path}.lora_B.weight"].float()
        @ tensors[f"{path}.lora_A.weight"].float()
        for path in paths
    }


@every_family
def test_a_stock_pipeline_draws_the_same(tmp_path: Path, family: str) -> None:
    """Exact where low rank; at full rank the SVD of anything is exact up to rounding."""
    pipe = pipeline()
    base = sample(pipe)
    stir(add_adapter(pipe, "one", family, **small(family)).parameters())
    wanted = sample(pipe)
    report = export_lora(pipe, "one", tmp_path / "lora.safetensors", rank=64)
    stock = pipeline()
    stock.load_lora_weights(str(tmp_path / "lora.safetensors"))
    assert (sample(stock) - wanted).abs().max() < 1e-4
    assert (base - wanted).abs().max() > 1e-2
    assert report.relative_error < 1e-5


@every_family
@pytest.mark.parametrize("host", ["sd3", "flux"])
def test_a_stock_transformer_computes_the_same(tmp_path: Path, host: str, family: str) -> None:
    model: Any = build(host)
    base = run(model, host)
    stir(add_adapter(model, "one", family, **small(family)).parameters())
    wanted = run(model, host)
    export_lora(model, "one", tmp_path / "lora.safetensors")
    stock: Any = build(host)
    stock.load_lora_adapter(str(tmp_path / "lora.safetensors"))
    assert distance(run(stock, host), wanted, base) < 1e-4


@every_family
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_stated_error_is_the_true_one(tmp_path: Path, family: str, rank: int) -> None:
    model = build(HOST)
    adapter_set = add_adapter(model, "one", family, **small(family))
    stir(adapter_set.parameters())
    report = export_lora(model, "one", tmp_path / "lora.safetensors", rank=rank)
    wanted, got = deltas(adapter_set, "one"), products(report.path)
    assert set(got) == set(wanted)
    errors = {path: float((got[path] - wanted[path]).norm() / wanted[path].norm()) for path in wanted}
    lost = sum(float((got[path] - wanted[path]).square().sum()) for path in wanted)
    whole = sum(float(delta.square().sum()) for delta in wanted.values())
    assert report.relative_error == pytest.approx((lost / whole) ** 0.5, abs=1e-3)
    if is_low_rank(adapter_set, "one"):
        assert report.exact
        assert max(errors.values()) < 1e-6
    else:
        assert not report.exact
        assert report.worst_error == pytest.approx(max(errors.values()), abs=1e-3)
        assert errors[report.worst_place.removeprefix("transformer.")] == pytest.approx(report.worst_error, abs=1e-3)
        needed = max(int(torch.linalg.matrix_rank(delta, rtol=1e-5)) for delta in wanted.values())
        assert report.relative_error > 1e-2 or report.rank >= min(needed, 8)
    with safe_open(report.path, "pt") as file:
        assert float(file.metadata()["relative_error"]) == pytest.approx(report.relative_error, rel=1e-3, abs=1e-9)
        assert file.metadata()["exported_from"] == family


def test_projections_may_have_different_ranks(tmp_path: Path) -> None:
    """A transform exported at full rank has the rank of each projection, and its own low-rank part beside it."""
    host = "unet_sd15"
    model = build(host)
    family = next(name for name in FAMILIES if not is_low_rank(adapt(build(host), [name]), name))
    stir(add_adapter(model, "one", family, **small(family)).parameters())
    wanted = run(model, host)
    report = export_lora(model, "one", tmp_path / "lora.safetensors", rank=64)
    ranks = {len(value) for key, value in read_safetensors(report.path)[0].items() if key.endswith("lora_A.weight")}
    assert len(ranks) > 1
    assert report.rank == max(ranks)
    stock: Any = build(host)
    stock.load_lora_adapter(str(report.path), prefix="unet")
    assert distance(run(stock, host), wanted, run(build(host), host)) < 1e-4


@every_family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_rounding(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = build(HOST)
    adapter_set = add_adapter(model, "one", family, **small(family))
    stir(adapter_set.parameters())
    report = export_lora(model, "one", tmp_path / "lora.safetensors", dtype=dtype)
    assert {value.dtype for value in read_safetensors(report.path)[0].values()} == {dtype}
    wanted, got = deltas(adapter_set, "one"), products(report.path)
    limit = 2 ** (-9 if dtype == torch.float16 else -6)
    assert all((got[path] - wanted[path]).norm() < limit * wanted[path].norm() for path in wanted)


@every_family
def test_the_weight_of_the_adapter_does_not_enter(tmp_path: Path, family: str) -> None:
    from diffusion_adapters import disable_adapters, set_adapters

    model = build(HOST)
    stir(add_adapter(model, "one", family, **small(family)).parameters())
    first = products(export_lora(model, "one", tmp_path / "a.safetensors").path)
    for change in (lambda: set_adapters(model, "one", 0.3), lambda: disable_adapters(model)):
        change()
        again = products(export_lora(model, "one", tmp_path / "b.safetensors").path)
        assert all(torch.equal(again[path], product) for path, product in first.items())


@every_family
def test_an_untrained_adapter_exports_nothing(tmp_path: Path, family: str) -> None:
    model = build(HOST)
    add_adapter(model, "one", family, **small(family))
    report = export_lora(model, "one", tmp_path / "lora.safetensors")
    assert report.relative_error == 0
    assert all(not bool(product.any()) for product in products(report.path).values())


def test_wrong_exports_write_nothing(tmp_path: Path) -> None:
    model: nn.Module = build(HOST)
    adapter_set = add_adapter(model, "one", rank=1)
    with pytest.raises(ValueError, match=r"rank must be at least 1, got 0"):
        export_lora(model, "one", tmp_path / "lora.safetensors", rank=0)
    with pytest.raises(ValueError, match=r"unknown adapter 'two', .*available: one"):
        export_lora(model, "two", tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"is a folder; give the name of a \.safetensors file"):
        export_lora(model, "one", tmp_path)
    with torch.no_grad():
        for parameter in adapter_set.parameters():
            parameter.fill_(1e6)
    with pytest.raises(ValueError, match=r"to_\w+.* is not finite in torch\.float16"):
        export_lora(model, "one", tmp_path / "lora.safetensors", dtype=torch.float16)
    with torch.no_grad():
        next(adapter_set.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"to_\w+.* not finite"):
        export_lora(model, "one", tmp_path / "lora.safetensors")
    assert list(tmp_path.iterdir()) == []
