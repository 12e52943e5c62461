"""Fusing into the weights and out of them, to the bit; what is refused meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_adapters import (
    FAMILIES,
    add_adapter,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    export_lora,
    fuse_adapters,
    list_adapters,
    load_adapter,
    save_adapter,
    set_adapters,
    unfuse_adapters,
)
from diffusion_adapters.safe import read_safetensors
from tests.hosts import HOST, adapt, bits, build, merge, one_and_two, run, same_bits, small, stir

PLACE = "transformer_blocks.0.attn.to_q"

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_a_thousand_cycles_restore_every_bit() -> None:
    model = build(HOST).to(torch.bfloat16)
    for family in FAMILIES:
        adapter_set = add_adapter(model, family, family, target_modules=[PLACE], **small(family))
    stir(adapter_set.parameters())
    before = bits(model)
    for cycle in range(1000):
        set_adapters(model, list(FAMILIES), 0.001 * (cycle + 1))
        fuse_adapters(model)
        if cycle % 250 == 0:
            assert not same_bits(model, before)
        unfuse_adapters(model)
    assert same_bits(model, before)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fusing_rounds_once_from_fp32(family: str, dtype: torch.dtype) -> None:
    model = build(HOST).to(dtype)
    adapter_set = adapt(model, [family])
    wide = merge(build(HOST).to(dtype).float(), adapter_set)
    fuse_adapters(model)
    fused, exact = model.get_submodule(PLACE).weight, wide.get_submodule(PLACE).weight
    assert fused.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else 2**-8
    assert ((fused.float() - exact).abs() <= limit * exact.abs() + 1e-7).all()


def test_verbs_are_refused_while_fused(model: nn.Module, tmp_path: Path) -> None:
    one_and_two(model)
    file = save_adapter(model, "one", tmp_path / "one.safetensors")
    fuse_adapters(model)
    fused = run(model, HOST)
    remedy = r"while adapters are fused into the weights; call unfuse_adapters\(\) first"
    refused = {
        f"cannot add adapters {remedy}": [
            lambda: add_adapter(model, "three", rank=1),
            lambda: load_adapter(model, file, "three"),
        ],
        f"cannot delete adapters {remedy}": [lambda: delete_adapters(model, "one")],
        f"cannot change adapter weights {remedy}": [
            lambda: set_adapters(model, "one", 0.5),
            lambda: disable_adapters(model),
            lambda: enable_adapters(model),
        ],
        r"already fused; call unfuse_adapters\(\) first": [lambda: fuse_adapters(model)],
    }
    for text, calls in refused.items():
        for call in calls:
            with pytest.raises(RuntimeError, match=text):
                call()
    assert torch.equal(run(model, HOST), fused)
    assert list(list_adapters(model)) == ["one", "two"]


def test_what_is_read_while_fused_is_what_was_before(model: nn.Module, tmp_path: Path) -> None:
    adapt(model)

    def write(name: str) -> tuple[dict[str, Tensor], Any]:
        tensors, _ = read_safetensors(save_adapter(model, name, tmp_path / "own.safetensors"))
        report = export_lora(model, name, tmp_path / "lora.safetensors", rank=8)
        return tensors | read_safetensors(report.path)[0], report

    before = {name: write(name) for name in FAMILIES}
    fuse_adapters(model)
    for name in FAMILIES:
        tensors, report = write(name)
        assert report == before[name][1]
        assert all(torch.equal(value, before[name][0][key]) for key, value in tensors.items())


@pytest.mark.parametrize("verb", [fuse_adapters, unfuse_adapters])
def test_there_must_be_something_to_fuse(model: nn.Module, verb: Any) -> None:
    with pytest.raises(RuntimeError, match=r"no adapter"):
        verb(model)
    one_and_two(model)
    set_adapters(model, ["one", "two"], 0.0)
    with pytest.raises(RuntimeError, match=r"no adapter"):
        verb(model)
    set_adapters(model, "one")
    disable_adapters(model)
    with pytest.raises(RuntimeError, match=r"disabled; call enable_adapters\(\)|no adapters are fused"):
        verb(model)


@every_family
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_fused_weight_that_is_not_finite_is_refused(model: nn.Module, family: str, bad: float) -> None:
    model.to(torch.float16)
    adapter_set = adapt(model, [family], target_modules=[PLACE])
    before = bits(model)
    with torch.no_grad():
        for parameter in adapter_set.parameters():
            parameter.fill_(bad)
        weight = model.get_submodule(PLACE).weight.float()
        if bool(adapter_set.of(family)[PLACE].delta_weight(weight).half().isfinite().all()):
            pytest.skip("a rotation has no values that are too large")
    with pytest.raises(ValueError, match=rf"{PLACE}: the fused weight is not finite; nothing was changed"):
        fuse_adapters(model)
    assert same_bits(model, before)
    set_adapters(model, family, 0.5)  # not fused
