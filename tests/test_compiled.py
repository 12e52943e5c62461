"""What adapters do in a compiled model: the same, and without another compilation for other weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_adapters import FAMILIES, delete_adapters, fuse_adapters, set_adapters, unfuse_adapters
from tests.hosts import HOSTS, TOLERANCE, adapt, build, distance, gradients_of, merge, run, stir

COMPILED = [pytest.param(host, marks=() if host == "flux" else pytest.mark.slow) for host in HOSTS]
"""Tracing a U-Net takes ten times as long as two blocks of a transformer."""
FEW = {"target_modules": ["to_q"]}
"""Each adapter is traced: a few do."""


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("host", COMPILED)
def test_compiled_forward_and_gradients_are_equal(host: str, backend: str) -> None:
    model = build(host)
    adapter_set = adapt(model, **FEW)
    eager = run(model, host)
    gradients = gradients_of(model, host, adapter_set)
    compiled: Any = torch.compile(model, fullgraph=True, backend=backend)
    assert distance(run(compiled, host), eager, run(build(host), host)) < TOLERANCE
    for got, wanted in zip(gradients_of(compiled, host, adapter_set), gradients, strict=True):
        assert (got - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("host", COMPILED)
@pytest.mark.parametrize("trained", [pytest.param(False, marks=pytest.mark.slow), True], ids=["loaded", "trained"])
def test_new_weights_do_not_recompile(host: str, trained: bool) -> None:
    model = build(host)
    adapter_set = adapt(model, **FEW).requires_grad_(trained)
    base = run(build(host), host)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    names = list(FAMILIES)
    run(compiled, host)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for factor in (0.5, -0.7):
            set_adapters(model, names, [factor * (i + 1) for i in range(len(names))])
            wanted = run(merge(build(host), adapter_set), host)
            assert distance(run(compiled, host), wanted, base) < TOLERANCE
        stir(adapter_set.parameters(), seed=4)
        adapter_set.refresh()
        assert distance(run(compiled, host), run(merge(build(host), adapter_set), host), base) < TOLERANCE


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("host", COMPILED)
def test_every_verb_reaches_a_compiled_model(host: str) -> None:
    model = build(host)
    base = run(model, host)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    run(compiled, host)
    adapter_set = adapt(compiled, **FEW)
    adapted = run(merge(build(host), adapter_set), host)
    assert distance(run(compiled, host), adapted, base) < TOLERANCE
    set_adapters(compiled, list(FAMILIES), 0)
    assert torch.equal(run(compiled, host), base)
    set_adapters(compiled, list(FAMILIES), 0.5)
    wanted = run(merge(build(host), adapter_set), host)
    assert distance(run(compiled, host), wanted, base) < TOLERANCE
    fuse_adapters(compiled)
    assert distance(run(compiled, host), wanted, base) < TOLERANCE
    unfuse_adapters(compiled)
    assert distance(run(compiled, host), wanted, base) < TOLERANCE
    delete_adapters(compiled, list(FAMILIES))
    assert torch.equal(run(compiled, host), base)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("host", COMPILED)
@pytest.mark.parametrize(
    "in_place", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torch.compile", "model.compile"]
)
def test_processors_replaced_after_compiling_have_adapters(host: str, in_place: bool) -> None:
    model: Any = build(host)
    adapter_set = adapt(model, **FEW)
    wanted = run(merge(build(host), adapter_set), host)
    base = run(build(host), host)
    compiled: Any = model
    if in_place:
        model.compile(fullgraph=True, backend="eager")
    else:
        compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert distance(run(compiled, host), wanted, base) < TOLERANCE
    for _ in range(2):
        model.set_attn_processor({path: type(p)() for path, p in build(host).attn_processors.items()})
        assert distance(run(compiled, host), wanted, base) < TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_fused_projections_after_compiling_keep_adapters() -> None:
    host = "flux"
    model: Any = build(host)
    adapter_set = adapt(model, **FEW)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    run(compiled, host)
    model.fuse_qkv_projections()
    wanted = run(merge(build(host), adapter_set), host)
    assert distance(run(compiled, host), wanted, run(build(host), host)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_computes_the_same() -> None:
    host = "flux"
    model = build(host)
    adapter_set = adapt(model, **FEW)
    compiled = torch.compile(model, fullgraph=True)
    wanted = run(merge(build(host), adapter_set), host)
    assert distance(run(compiled, host), wanted, run(build(host), host)) < 1e-3
