"""Adapters on every kind of denoiser that diffusers has: the claim that one processor serves them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusion_adapters import (
    Adapter,
    AdapterConfig,
    AdapterInfo,
    add_adapter,
    delete_adapters,
    fuse_adapters,
    load_adapter,
    save_adapter,
    set_adapters,
    unfuse_adapters,
)
from diffusion_adapters.adapter_set import AdapterSet
from tests.denoisers import NOT_BUILT, ZOO, attending_classes, build, missing, run

TOLERANCE = 1e-4
"""Of the effect. Adapted and fused projections are the same sums in another order: fp32 rounds each by 6e-8 of the
output, the effect is 1 to 100 percent of it, and layers amplify: 1e-7 to 1e-5. A projection left out costs percents."""
VISIBLE = 1e-3
"""Of the output: a smaller effect would drown in that rounding."""

UNREACHED = {
    # The block applies this projection itself, to the sum of both attentions: no processor ever sees it.
    "lumina_next": ("attn2.to_out.0",),
    # The refiner keeps the half of LTX-2 that hears, and runs only the half that sees.
    "sana_wm_refiner": ("audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"),
}
"""Projections of attention modules that stand outside every attention processor, or are not run at all."""

every_denoiser = pytest.mark.parametrize("name", ZOO)


class Rescale(Adapter):
    """ΔW = W diag(a) + diag(b) W: an adapter that is not low rank, acting before and after the projection."""

    def __init__(self, weight: Tensor, config: AdapterConfig) -> None:
        super().__init__(weight, config)
        self.a = nn.Parameter(torch.zeros(self.in_features))
        self.b = nn.Parameter(torch.zeros(self.out_features))

    def delta_weight(self, weight: Tensor) -> Tensor:
        return weight * self.a + weight * self.b[:, None]

    def input_delta(self, x: Tensor) -> Tensor:
        return x * self.a.to(x)

    def forward(self, x: Tensor, y: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        return (y - linear(torch.zeros_like(x))) * self.b.to(y)


def denoiser(name: str) -> nn.Module:
    if missing(name):
        pytest.skip(f"needs {missing(name)}")
    return build(name)


def is_unreached(name: str, path: str) -> bool:
    return any(f".{part}." in f".{path}." for part in UNREACHED.get(name, ()))


def two_adapters(model: nn.Module, targets: list[str] | None = None) -> AdapterSet:
    """Two adapters of different rank, strength and weight, on every projection unless told otherwise."""
    add_adapter(model, "one", rank=1, alpha=2.0, target_modules=targets)
    adapter_set = add_adapter(model, "two", rank=2, target_modules=targets)
    set_adapters(model, ["one", "two"], [0.8, -0.5])
    return adapter_set


def stir(adapter_set: AdapterSet) -> None:
    """Give every adapter an effect, as if it had been trained: about a fifth of the size of the weights."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in adapter_set.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.3)


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert [key for key, value in before.items() if not torch.equal(after[key], value)] == []


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@every_denoiser
def test_adapters_start_at_the_base_and_reach_every_projection(name: str) -> None:
    model = denoiser(name)
    base, state = run(model, name), snapshot(model)
    adapter_set = two_adapters(model)
    assert torch.equal(run(model, name), base)
    stir(adapter_set)
    assert not torch.equal(run(model, name), base)
    assert_same_state(model, state)
    reached = adapter_set.coverage()
    assert len(reached) == len(adapter_set.projections())
    assert {path for path in reached if not reached[path]} == {path for path in reached if is_unreached(name, path)}


@every_denoiser
def test_adapted_output_is_that_of_fused_weights(name: str) -> None:
    model = denoiser(name)
    base, state = run(model, name), snapshot(model)
    targets = [path for path in AdapterSet(model).projections() if not is_unreached(name, path)]
    adapter_set = two_adapters(model, targets)
    weights = {path: adapter_set.projections()[path].base.weight for path in targets}
    config = AdapterConfig()
    rescale = {path: Rescale(weight, config) for path, weight in weights.items()}
    adapter_set.insert("three", rescale, AdapterInfo(family="none", config=config), weight=0.3)
    stir(adapter_set)
    adapted = run(model, name)
    fuse_adapters(model)
    effect = run(model, name) - base
    assert effect.norm() > VISIBLE * base.norm()
    assert (adapted - base - effect).norm() < TOLERANCE * effect.norm()
    unfuse_adapters(model)
    assert_same_state(model, state)
    assert torch.equal(run(model, name), adapted)


@every_denoiser
def test_gradient_of_adapters_is_that_of_the_weights(name: str) -> None:
    model = denoiser(name).requires_grad_(True)
    targets = [path for path in AdapterSet(model).projections() if not is_unreached(name, path)]
    adapter_set = two_adapters(model, targets)
    stir(adapter_set)
    try:
        run(model, name, grad=True).square().mean().backward()
    except NotImplementedError as error:  # flex attention has no backward on the CPU
        pytest.skip(str(error))
    trained = 0
    for path in targets:
        weight = adapter_set.projections()[path].base.weight
        for adapter_name, factor in adapter_set.weights.items():
            adapter = adapter_set.of(adapter_name)[path]
            parameters = dict(adapter.named_parameters())
            change = factor * adapter.delta_weight(weight.detach())
            upstream = torch.zeros_like(weight) if weight.grad is None else weight.grad
            wanted = torch.autograd.grad((change * upstream).sum(), list(parameters.values()))
            for (key, parameter), gradient in zip(parameters.items(), wanted, strict=True):
                got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                assert (got - gradient).norm() <= TOLERANCE * gradient.norm(), f"{path} {key}"
                trained += bool(gradient.any())
    assert trained > 0


@every_denoiser
def test_file_brings_the_adapters_back(name: str, tmp_path: Path) -> None:
    model = denoiser(name)
    base = run(model, name)
    stir(two_adapters(model))
    adapted = run(model, name)
    files = [save_adapter(model, adapter, tmp_path / f"{adapter}.safetensors") for adapter in ("one", "two")]
    delete_adapters(model, ["one", "two"])
    assert torch.equal(run(model, name), base)
    for file in files:
        load_adapter(model, file)
    set_adapters(model, ["one", "two"], [0.8, -0.5])
    assert torch.equal(run(model, name), adapted)


def test_every_attending_class_is_built_or_has_a_reason() -> None:
    built = {row.cls for row in ZOO.values()}
    assert built.isdisjoint(NOT_BUILT)
    assert built | NOT_BUILT.keys() == attending_classes().keys()
