"""Weights by scope, step, region, sample and band together, and in a compiled denoiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffusion_adapters import (
    FAMILIES,
    AdapterWeight,
    add_adapter,
    delete_adapters,
    fuse_adapters,
    get_active_adapters,
    set_adapters,
    use_adapters,
)
from tests.denoisers import ZOO
from tests.hosts import HOSTS, LEFT, adapt, build, call, pipeline, sample, small, stir, two

every_host = pytest.mark.parametrize("host", HOSTS)


def test_all_five_combine() -> None:
    """Scopes, samples, a schedule, masks and bands at once equal their constants one sample at a time."""
    pipe = pipeline()
    model = pipe.unet
    for seed, family in enumerate(FAMILIES):
        own = add_adapter(model, family, family, **small(family))
        stir((v for adapter in own.of(family).values() for v in adapter.parameters()), seed=seed)
    pipe.scheduler.set_timesteps(4)
    names = list(FAMILIES)
    mixes = [[1.0, 0.3 * i] for i in range(len(names))]

    def weights(sample: int | None, step: float | None) -> list[AdapterWeight]:
        made = []
        for i in range(len(names)):
            parts: dict[str, Any] = {"scopes": {"attn1": 0.5, "to_k": 1.5}, "bands": (1.0, 0.2 * i, 0.5)}
            parts["mask"] = LEFT if i % 2 else None
            value = 0.9 - 0.1 * i
            if sample is None:
                made.append(AdapterWeight(value, samples=mixes[i], schedule={0.0: 1.0, 1.0: 0.2 * i}, **parts))
            else:
                at = 1.0 + (0.2 * i - 1.0) * float(step or 0)
                made.append(AdapterWeight(value * mixes[i][sample] * at, **parts))
        return made

    inputs = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 16)
    for i, t in enumerate(pipe.scheduler.timesteps):
        set_adapters(pipe, names, weights(None, None))
        with torch.no_grad():
            together = model(inputs[0], t, inputs[1]).sample
            for row in range(2):
                set_adapters(pipe, names, weights(row, i / 4))
                alone = model(inputs[0][row : row + 1], t, inputs[1][row : row + 1]).sample
                torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_for_a_while() -> None:
    pipe = pipeline()
    adapt(pipe.unet)
    before, picture = get_active_adapters(pipe), sample(pipe)
    with use_adapters(pipe, "lora", AdapterWeight(0.3, end=0.5, mask=LEFT)):
        assert list(get_active_adapters(pipe)) == ["lora"]
        inside = sample(pipe)

    def fails() -> None:
        with use_adapters(pipe, []):
            assert get_active_adapters(pipe) == {}
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert get_active_adapters(pipe) == before
    assert torch.equal(sample(pipe), picture)
    assert not torch.equal(inside, picture)


def test_what_varies_cannot_be_fused() -> None:
    model = two("flux")
    for weight in (AdapterWeight(mask=LEFT), AdapterWeight(samples=[1, 0]), AdapterWeight(bands=(1, 0))):
        set_adapters(model, "a", weight)
        with pytest.raises(RuntimeError, match="adapter 'a' depends on step, region, sample or band"):
            fuse_adapters(model)


def test_deleting_a_masked_adapter_leaves_the_base() -> None:
    model = two("sd3")
    base = build("sd3")
    set_adapters(model, ["a", "b"], [AdapterWeight(mask=LEFT), AdapterWeight(bands=(1, 0))])
    call(model, "sd3")
    delete_adapters(model, ["a", "b"])
    assert torch.equal(call(model, "sd3"), call(base, "sd3"))


@every_host
def test_gradients_pass_through_every_kind_of_weight(host: str) -> None:
    """As if the weights were in ΔW: of a per-sample mix, the mean of the gradients of its parts."""
    model = build(host)
    adapter_set = adapt(model, ["lora", "transformed_lora"])
    weights = [0.5, 0.8]
    gradients = []
    for given in (weights, [AdapterWeight(w, samples=[1.0, 1.0], mask=np.ones((2, 2))) for w in weights]):
        set_adapters(model, ["lora", "transformed_lora"], given)
        adapter_set.zero_grad()
        torch.manual_seed(1)
        model(**ZOO[host].inputs(model)).sample.square().sum().backward()
        gradients.append([p.grad.clone() for p in adapter_set.parameters() if p.grad is not None])
    for wanted, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


FEW = ["lora", "transformed_lora"]
"""One family that is low rank, and one that transforms its input: tracing takes long."""


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "host", [*(pytest.param(host, marks=pytest.mark.slow) for host in ("unet_sd15", "sd3")), "flux"]
)
def test_other_weights_of_every_kind_do_not_recompile(host: str) -> None:
    model = build(host)
    adapt(model, FEW, target_modules=["to_q"])
    names = FEW
    eager = build(host)
    adapt(eager, FEW, target_modules=["to_q"])
    set_adapters(model, names, AdapterWeight(mask=LEFT))
    call(model, host)  # of packed latents, the grid is read in a forward that is not compiled
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    def kinds(x: float) -> list[Any]:
        mask = np.full((8, 8), x, dtype=np.float32)
        return [
            [x] * len(names),
            [AdapterWeight(x, samples=[x, 0.5])] * len(names),
            [AdapterWeight(x, bands=(x, 1.0, 0.0))] * len(names),
            [AdapterWeight(x, mask=mask)] * len(names),
        ]

    for first, *others in zip(kinds(0.5), kinds(0.25), kinds(0.9), strict=True):
        set_adapters(eager, names, first)
        set_adapters(compiled, names, first)
        torch.testing.assert_close(call(eager, host), call(compiled, host), rtol=1e-4, atol=1e-5)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for weights in others:
                set_adapters(eager, names, weights)
                set_adapters(compiled, names, weights)
                torch.testing.assert_close(call(eager, host), call(compiled, host), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_schedules_are_followed_by_a_compiled_denoiser() -> None:
    pipe, other = pipeline(), pipeline()
    for one in (pipe, other):
        adapt(one.unet, FEW, target_modules=["to_q"])
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend="eager")
    names = FEW
    for i, frames in enumerate(({0.0: 1.0, 0.5: 0.0}, {0.3: -1.0, 0.7: 1.0, 0.8: 0.5})):
        for one in (pipe, other):
            set_adapters(one, names, AdapterWeight(schedule=frames, end=0.8))
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            torch.testing.assert_close(sample(pipe, steps=5), sample(other, steps=5), rtol=1e-4, atol=1e-5)
