"""What every adapter must do, as plain functions of a family and its options: raise AssertionError where it does not.

No family is named here. `CHECKS` lists all checks.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffusion_adapters.adapter import Adapter
from tests.probes import (
    IN,
    OUT,
    TOKENS,
    Family,
    Largest,
    Overrides,
    close,
    declared_count,
    make,
    plan_of,
    projection,
    stir,
)


def check_starts_at_base(family: Family, overrides: Overrides) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        linear, x = projection(dtype), torch.randn(2, TOKENS, IN).to(dtype)
        adapter = make(family, overrides, linear, stirred=False)
        plan = plan_of([(adapter, 0.5)])
        assert torch.equal(plan(linear, x), linear(x)), f"the output changes in {dtype}"
        with torch.no_grad():
            assert torch.equal(plan(linear, x), linear(x)), f"the output changes in {dtype} without gradients"
        assert not adapter.delta_weight(linear.weight.float()).any(), "delta_weight is not zero"


def check_forward_is_delta_weight(family: Family, overrides: Overrides) -> None:
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        linear, x = projection(dtype), torch.randn(2, TOKENS, IN).to(dtype)
        adapter = make(family, overrides, linear)
        delta = adapter.delta_weight(linear.weight.float()).detach()
        assert delta.shape == (OUT, IN)
        assert delta.dtype == torch.float32
        expected = 0.5 * x.float() @ delta.t()
        assert expected.norm() > 0.1 * linear(x).float().norm(), "the stir is too weak for this test to see anything"
        plan = plan_of([(adapter, 0.5)])
        trained = plan(linear, x)
        assert trained.dtype == dtype
        with torch.no_grad():
            sampled = plan(linear, x)
        strided = plan(linear, torch.stack((x, x), dim=1)[:, 0])
        wide = nn.Linear(IN, OUT)
        wide.load_state_dict({name: value.float() for name, value in linear.state_dict().items()})
        for name, y in (("training", trained), ("sampling", sampled), ("a strided input", strided)):
            error = float((y.detach().float() - wide(x.float()).detach() - expected).norm() / expected.norm())
            assert error < tolerance, f"{name} in {dtype}: x ΔWᵀ is off by {error:.2g}"


def check_delta_weight_is_pure(family: Family, overrides: Overrides) -> None:
    linear = projection()
    adapter = make(family, overrides, linear)
    weight, state = linear.weight.detach().clone(), copy.deepcopy(adapter.state_dict())
    first = adapter.delta_weight(weight)
    second = adapter.delta_weight(weight)
    assert torch.equal(first, second)
    assert torch.equal(weight, linear.weight), "delta_weight changed the weight"
    for name, value in adapter.state_dict().items():
        assert torch.equal(value, state[name]), f"delta_weight changed {name}"
    assert torch.equal(copy.deepcopy(adapter).delta_weight(weight), first), "a copy is not the same"


def check_gradients(family: Family, overrides: Overrides) -> None:
    linear, x = projection(), torch.randn(2, TOKENS, IN, requires_grad=True)
    adapter = make(family, overrides, linear)
    y = plan_of([(adapter, 0.5)])(linear, x)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    for name, value in adapter.named_parameters():
        assert value.grad is not None, f"{name} gets no gradient"
        assert torch.isfinite(value.grad).all(), f"{name} gets a gradient that is not finite"
        assert value.grad.any(), f"{name} gets a gradient of zero"
    assert linear.weight.grad is None, "the base gets a gradient"
    assert x.grad is not None
    close(x.grad, upstream @ (linear.weight + 0.5 * adapter.delta_weight(linear.weight)).detach(), 1e-4)


def check_parts(family: Family, overrides: Overrides) -> None:
    """ΔW is what its parts give for the unit vectors, and the rank of the low-rank part is bound."""
    linear = projection()
    adapter, eye = make(family, overrides, linear), torch.eye(IN)
    total = torch.zeros(OUT, IN)
    factors = adapter.low_rank()
    if factors is not None:
        up, down = factors
        assert up.shape[0] == OUT
        assert down.shape[1] == IN
        assert up.shape[1] == down.shape[0]
        assert up.requires_grad or down.requires_grad, "factors() is not differentiable"
        product = (up @ down).detach()
        total += product
        assert torch.linalg.matrix_rank(product) <= up.shape[1]
        assert product.any()
    if adapter.transforms_input:
        total += linear.weight @ adapter.input_delta(eye).t().detach()
    if adapter.adds_output:
        total += adapter(eye, linear(eye), linear).t().detach()
    close(total, adapter.delta_weight(linear.weight).detach(), 1e-5)


def check_alpha(family: Family, overrides: Overrides) -> None:
    """The low-rank part is proportional to alpha, where there is an alpha."""
    linear = projection()
    if "alpha" not in overrides:
        return
    one, other = (make(family, {**overrides, "alpha": alpha}, linear, stirred=False) for alpha in (3.0, 12.0))
    stir(one)
    other.load_state_dict(one.state_dict())
    factors, multiplied = one.low_rank(), other.low_rank()
    if factors is not None and multiplied is not None:
        close((multiplied[0] @ multiplied[1]).detach(), 4 * (factors[0] @ factors[1]).detach(), 1e-5)


def check_two_at_once(family: Family, overrides: Overrides) -> None:
    linear, x = projection(), torch.randn(2, TOKENS, IN)
    first, second = make(family, overrides, linear), make(family, overrides, linear)
    together = plan_of([(first, 0.5), (second, -1.5)])(linear, x) - linear(x)
    apart = sum(plan_of([member])(linear, x) - linear(x) for member in ((first, 0.5), (second, -1.5)))
    close(together.detach(), apart.detach(), 1e-4)


def check_round_trip(family: Family, overrides: Overrides) -> None:
    linear, x = projection(), torch.randn(2, TOKENS, IN)
    adapter = make(family, overrides, linear)
    state = {name: value.clone() for name, value in adapter.state_dict().items()}
    config = family.Config.from_mapping(adapter.config.as_dict())
    assert config == adapter.config
    torch.manual_seed(1)
    loaded = family.from_tensors(linear.weight.detach(), config, state)
    assert torch.equal(loaded.delta_weight(linear.weight), adapter.delta_weight(linear.weight))
    assert torch.equal(plan_of([(loaded, 1.0)])(linear, x), plan_of([(adapter, 1.0)])(linear, x))
    name = next(iter(state))
    broken = {
        f"missing {name}": {k: v for k, v in state.items() if k != name},
        "unexpected other": {**state, "other": torch.zeros(1)},
        f"{name} has shape": {**state, name: state[name][..., None]},
    }
    for message, tensors in broken.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            family.from_tensors(linear.weight.detach(), config, tensors)


def check_numbers(family: Family, overrides: Overrides) -> None:
    """As many trained values as the docstring says, with and without numbers in W; the file holds little else."""
    linear = projection()
    adapter = make(family, overrides, linear)
    trained = sum(value.numel() for value in adapter.parameters())
    assert trained == declared_count(adapter)
    assert trained == sum(v.numel() for v in family(linear.weight.to("meta"), adapter.config).parameters())
    saved = adapter.state_dict()
    names = [name for name, _ in adapter.named_parameters()]
    assert set(names) <= set(saved), "a parameter is missing in the file"
    rest = sum(value.numel() for name, value in saved.items() if name not in names)
    assert rest <= 2 * trained, f"the file holds {rest} values that are not trained, beside {trained}"
    assert all(value.requires_grad and value.dtype == torch.float32 for value in adapter.parameters())


def check_parameter_groups(family: Family, overrides: Overrides) -> None:
    adapter = make(family, overrides, projection())
    groups = adapter.parameter_groups(1e-3)
    grouped = [id(value) for group in groups for value in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(value) for value in adapter.parameters()}, "parameter_groups leaves parameters out"
    fastest = max(a.learning_rate for a in adapter.modules() if isinstance(a, Adapter)) / family.learning_rate  # a part
    assert all(0 < group["lr"] <= 1e-3 * fastest for group in groups)
    assert [g["lr"] for g in adapter.parameter_groups(2e-3)] == pytest.approx([2 * g["lr"] for g in groups])
    before = adapter.delta_weight(torch.ones(OUT, IN)).detach()
    optimizer = torch.optim.AdamW(groups)
    penalty = adapter.penalty()
    loss = adapter.delta_weight(torch.ones(OUT, IN)).square().sum()
    loss = loss if penalty is None else loss + penalty
    assert loss.shape == ()
    loss.backward()
    optimizer.step()
    assert not torch.equal(adapter.delta_weight(torch.ones(OUT, IN)), before)


def check_seed(family: Family, overrides: Overrides) -> None:
    linear, states = projection(), []
    for _ in range(2):
        torch.manual_seed(7)
        adapter = make(family, overrides, linear)
        states.append((adapter.delta_weight(linear.weight), adapter.state_dict()))
    assert torch.equal(states[0][0], states[1][0])
    for name, value in states[0][1].items():
        assert torch.equal(value, states[1][1][name])


def check_no_dense_tensor(family: Family, overrides: Overrides) -> None:
    linear, x = projection(), torch.randn(TOKENS, IN, requires_grad=True)
    adapter = make(family, overrides, linear)
    plan = plan_of([(adapter, 0.5)])
    with Largest(linear.weight) as largest:
        plan(linear, x).square().sum().backward()
    limit = min(IN, OUT) ** 2
    assert largest.size < limit, f"{largest.maker} is as large as a weight"


def check_checkpointing(family: Family, overrides: Overrides) -> None:
    linear, x = projection(), torch.randn(2, TOKENS, IN, requires_grad=True)
    adapter = make(family, overrides, linear)
    plan = plan_of([(adapter, 0.5)])
    gradients = []
    for call in (lambda: plan(linear, x), lambda: checkpoint(lambda v: plan(linear, v), x, use_reentrant=False)):
        adapter.zero_grad()
        call().square().sum().backward()
        gradients.append({name: value.grad.clone() for name, value in adapter.named_parameters()})
    for name, value in gradients[0].items():
        assert torch.equal(value, gradients[1][name]), f"checkpointing changes the gradient of {name}"


def check_bad_options(family: Family, overrides: Overrides) -> None:
    config = family.Config
    for field in dataclasses.fields(config):
        kind, optional = config.kinds()[field.name]
        with pytest.raises(TypeError, match=field.name):
            config(**{field.name: object()})
        if not optional:
            with pytest.raises(TypeError, match=field.name):
                config(**{field.name: None})
        bad = [kind(bound + {"ge": -1, "gt": 0, "le": 1, "lt": 0}[k]) for k, bound in field.metadata["bounds"].items()]
        bad += ["no such choice"] if field.metadata["choices"] and kind is str else []
        for value in bad:
            with pytest.raises(ValueError, match=field.name):
                config(**{field.name: value})
    with pytest.raises(ValueError, match="no_such_option"):
        config.from_mapping({**overrides, "no_such_option": 1})
    if "rank" in overrides:
        with pytest.raises(ValueError, match="rank"):
            family(projection().weight.detach(), config(**{**overrides, "rank": OUT * IN}))


CHECKS: list[Callable[[Family, Overrides], None]] = [
    check_starts_at_base,
    check_forward_is_delta_weight,
    check_delta_weight_is_pure,
    check_gradients,
    check_parts,
    check_alpha,
    check_two_at_once,
    check_round_trip,
    check_numbers,
    check_parameter_groups,
    check_seed,
    check_no_dense_tensor,
    check_checkpointing,
    check_bad_options,
]
