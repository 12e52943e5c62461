"""Query, key and value of one input are multiplied at once, and only then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_adapters import set_adapters
from diffusion_adapters.site import Site
from tests.hosts import HOSTS, TOLERANCE, adapt, build, distance, merge, run
from train.benchmarks.ops import OpCounter


@pytest.fixture
def site() -> Site:
    """An attention on one sequence, with two low-rank adapters."""
    model = build("flux")
    return next(iter(adapt(model, ["lora", "wara"]).sites.values()))


def wanted(site: Site, name: str, x: Tensor) -> Tensor:
    """By W + Σ w ΔW."""
    projection = site.projections[name]
    plan, weight = projection.plan, projection.weight.detach()
    assert plan is not None
    factors = [plan.blend.values[plan.blend.columns[member.name]] for member in plan.members]
    deltas = [member.adapter.delta_weight(weight) for member in plan.members]
    total = weight + sum(factor * delta for factor, delta in zip(factors, deltas, strict=True))
    return nn.functional.linear(x, total, projection.bias)


def check(site: Site, calls: list[tuple[str, Tensor]]) -> None:
    for name, x in calls:
        torch.testing.assert_close(site.projections[name](x), wanted(site, name, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_any_order_and_any_input(site: Site, mode: Callable[[], Any]) -> None:
    width = site.projections["to_q"].in_features
    with mode():
        x, other = torch.randn(2, 3, width), torch.randn(2, 3, width)
        check(site, [("to_q", x), ("to_k", x), ("to_v", x)])
        check(site, [("to_q", x), ("to_k", other), ("to_v", x), ("to_v", other), ("to_q", other), ("to_q", x)])
        check(site, [("to_v", x), ("to_v", x), ("to_k", x.double().float()), ("to_q", x[:1])])


def test_what_changes_in_between_is_noticed(site: Site) -> None:
    x = torch.randn(2, 3, site.projections["to_q"].in_features)
    plan = site.projections["to_k"].plan
    assert plan is not None
    with torch.no_grad():
        check(site, [("to_q", x)])
        x.mul_(2)
        check(site, [("to_k", x)])
        next(plan.low_rank[0].adapter.parameters()).mul_(3)
        check(site, [("to_v", x), ("to_k", x), ("to_q", x)])
        check(site, [("to_q", x)])
        next(plan.low_rank[0].adapter.parameters()).mul_(3)
        check(site, [("to_k", x)])


@pytest.mark.parametrize("grad", [False, True])
def test_one_product_where_no_gradient_is_asked_for(site: Site, grad: bool) -> None:
    x = torch.randn(2, 3, site.projections["to_q"].in_features)
    names = ("to_q", "to_k", "to_v")
    with nullcontext() if grad else torch.no_grad():
        for name in names:
            site.projections[name](x)
        with OpCounter() as counter:
            for name in names:
                site.projections[name](x)
    assert counter.counts["mm"] == (3 if grad else 1)


@pytest.mark.parametrize("host", HOSTS)
def test_numbers_are_those_of_fused_weights_after_every_change(host: str) -> None:
    model, base = build(host), run(build(host), host)
    adapter_set = adapt(model, ["lora", "wara"])
    for weights in ([0.5, 1.0], [-1.0, 0.3], [0.0, 0.7]):
        set_adapters(model, ["lora", "wara"], weights)
        assert distance(run(model, host), run(merge(build(host), adapter_set), host), base) < TOLERANCE
