"""Layers outside attention: each carries adapters as if they were added to its weight, and is as it was without."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from diffusion_adapters import (
    FAMILIES,
    Adapter,
    AdapterInfo,
    coverage,
    delete_adapters,
    fuse_adapters,
    set_adapters,
    unfuse_adapters,
)
from diffusion_adapters.adapter_set import AdapterSet
from diffusion_adapters.blend import Blend
from diffusion_adapters.build import build_adapters
from diffusion_adapters.hooks import find_adapter_set
from diffusion_adapters.linalg import matrix
from diffusion_adapters.outside import find_outside, is_convolution
from diffusion_adapters.plan import Member, Plan
from diffusion_adapters.weight import AdapterWeight
from tests.hosts import TOLERANCE, build, distance, run, stir

ODD = {
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "padded alike": {"kernel_size": (3, 5), "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": (2, 0), "bias": False},
    "pointwise": {"kernel_size": 1},
    "pointwise, strided": {"kernel_size": 1, "stride": (2, 1)},
    "pointwise, padded": {"kernel_size": 1, "padding": 1},
}


def layers(model: nn.Module, family: str = "lora") -> dict[str, Adapter]:
    """A new adapter for each layer outside attention that the family fits."""
    kind, inside, found = FAMILIES[family], AdapterSet(model).projections(), {}
    config = kind.Config(**({"rank": 1} if "rank" in kind.Config.kinds() else {}))
    for path, module in model.named_modules():
        if path not in inside and (type(module) is nn.Linear or is_convolution(module)):
            with contextlib.suppress(ValueError):
                found |= build_adapters(find_outside(model, [path]), family, config, [path])
    return found


def attach(model: nn.Module, adapters: dict[str, Adapter]) -> AdapterSet:
    adapter_set = find_adapter_set(model) or AdapterSet(model)
    for adapter in adapters.values():
        stir(adapter.parameters(), strength=0.1)
        adapter.requires_grad_(False)
    first = next(iter(adapters.values()))
    adapter_set.insert("one", adapters, AdapterInfo(family="lora", config=first.config))
    return adapter_set


def merged(model: nn.Module, adapter_set: AdapterSet, weight: float = 1.0, name: str = "one") -> nn.Module:
    bare = copy.deepcopy(model)
    delete_adapters(bare, list(adapter_set.infos))
    with torch.no_grad():
        for path, adapter in adapter_set.of(name).items():
            value = bare.get_submodule(path).weight
            value += weight * adapter.delta_weight(matrix(value)).view_as(value)
    return bare


@pytest.mark.parametrize(
    ("host", "family"), [("flux", "lora"), ("sd3", "lora"), *(("unet_sd15", family) for family in FAMILIES)]
)
def test_every_layer_is_adapted(host: str, family: str) -> None:
    model = build(host)
    base, adapters = run(model, host), layers(model, family)
    assert len(adapters) > 5
    adapter_set = attach(model, adapters)
    set_adapters(model, ["one"], 0.5)
    assert distance(run(model, host), run(merged(model, adapter_set, 0.5), host), base) < TOLERANCE
    assert all(coverage(model).values())
    adapted = run(copy.deepcopy(model), host)
    assert torch.equal(adapted, run(model, host)), "a copy computes otherwise"
    fuse_adapters(model)
    assert distance(run(model, host), adapted, base) < TOLERANCE
    unfuse_adapters(model)
    set_adapters(model, [])
    assert torch.equal(run(model, host), base)
    delete_adapters(model, "one")
    assert torch.equal(run(model, host), base)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ODD)
@torch.no_grad()
def test_convolutions_of_every_kind(kind: str) -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 8, **ODD[kind])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    model, x = Host(), torch.randn(2, 6, 9, 10)
    base = model(x)
    found = find_outside(model, ["conv"])
    layer, adapter = found["conv"], build_adapters(found, "lora", FAMILIES["lora"].Config(rank=3), found)["conv"]
    stir(adapter.parameters())
    blend = Blend(model)
    blend.take({"pet": AdapterWeight(0.5)}, torch.device("cpu"))
    layer.plan = Plan([Member(adapter, "pet")], blend)
    layer.wire()
    adapted = model(x)
    layer.plan = None
    layer.wire()
    model.conv.weight += 0.5 * adapter.delta_weight(matrix(model.conv.weight)).view_as(model.conv.weight)
    assert distance(adapted, model(x), base) < TOLERANCE


def test_it_can_be_trained() -> None:
    model = build("unet_sd15")
    adapter_set = attach(model, layers(model))
    for adapter in adapter_set.of("one").values():
        adapter.requires_grad_(True)
    run(model, "unet_sd15", grad=True).square().mean().backward()
    assert all(value.grad is not None and value.grad.any() for value in adapter_set.parameters())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("conv_norm_out", r"conv_norm_out: a GroupNorm can carry no adapter"),
        ("down_blocks.9.conv", r"down_blocks\.9\.conv: there is no such layer in this UNet2DConditionModel"),
    ],
)
def test_what_cannot_carry_one(path: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        find_outside(build("unet_sd15"), [path])


def test_a_compiled_model_takes_them() -> None:
    model = build("unet_sd15")
    compiled = torch.compile(model, backend="eager")
    base = run(compiled, "unet_sd15")
    adapters = dict(list(layers(model).items())[:6])
    projections = AdapterSet(model).projections()
    adapters |= build_adapters(projections, "lora", next(iter(adapters.values())).config, list(projections)[:1])
    adapter_set = attach(model, adapters)
    assert distance(run(compiled, "unet_sd15"), run(merged(model, adapter_set), "unet_sd15"), base) < TOLERANCE
    set_adapters(model, ["one"], 0.5)
    assert distance(run(compiled, "unet_sd15"), run(merged(model, adapter_set, 0.5), "unet_sd15"), base) < TOLERANCE
    set_adapters(model, [])
    assert distance(base + run(compiled, "unet_sd15"), 2 * base, torch.zeros_like(base)) < TOLERANCE
