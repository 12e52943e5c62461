"""The conformance suite must fail on families that are wrong: each mutant here names the checks that have to notice."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from diffusion_adapters.adapter import FAMILIES
from tests import conformance, probes
from tests.conformance import CHECKS, check_numbers
from tests.probes import OUT, Family, declared_count, make, projection

Good: Any = FAMILIES["lora"]
Transform: Any = FAMILIES["transformed_lora"]
OPTIONS = {"rank": 2, "alpha": 6.0}
COUNTER = itertools.count(1)


class ScaleSquared(Good):
    def factors(self) -> tuple[Tensor, float, Tensor]:
        return self.B, self.scaling**2, self.A


class AlphaDropped(Good):
    def factors(self) -> tuple[Tensor, float, Tensor]:
        return self.B, 1.0, self.A


class ScaleTwiceInDelta(Good):
    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.scaling * super().delta_weight(weight)


class WeightAddedToDelta(Good):
    def delta_weight(self, weight: Tensor) -> Tensor:
        return weight + super().delta_weight(weight)


class DeltaTransposed(Good):
    def delta_weight(self, weight: Tensor) -> Tensor:
        return super().delta_weight(weight).t()


class FactorsSwapped(Good):
    def factors(self) -> tuple[Tensor, float, Tensor]:
        return self.A, self.scaling, self.B


class StartsOff(Good):
    def __init__(self, weight: Tensor, config: Any) -> None:
        super().__init__(weight, config)
        nn.init.constant_(self.B, 1e-3)


class FactorDetached(Good):
    def factors(self) -> tuple[Tensor, float, Tensor]:
        return self.B, self.scaling, self.A.detach()


class ParameterUnused(Good):
    def __init__(self, weight: Tensor, config: Any) -> None:
        super().__init__(weight, config)
        self.gate = nn.Parameter(torch.ones(1))


class WritesWeight(Good):
    def delta_weight(self, weight: Tensor) -> Tensor:
        delta = super().delta_weight(weight)
        weight += delta
        return delta


class BuildsDense(Good):
    def factors(self) -> None:
        return None

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.scaling * self.B @ self.A

    def forward(self, x: Tensor, y: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        return x @ self.delta_weight(torch.empty(0)).t().to(x)


class StaysWide(Good):
    """Computes in fp32 where the denoiser is in bf16."""

    def factors(self) -> None:
        return None

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.scaling * self.B @ self.A

    def forward(self, x: Tensor, y: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        return (x @ self.A.t()) @ (self.scaling * self.B).t()


class ForgetsOnLoad(Good):
    @classmethod
    def from_tensors(cls, weight: Tensor, config: Any, tensors: dict[str, Tensor]) -> Self:
        adapter = cls(weight, config)
        adapter.load_state_dict({"B": tensors["B"]}, strict=False)
        return adapter


class SavesBasis(Good):
    def __init__(self, weight: Tensor, config: Any) -> None:
        super().__init__(weight, config)
        self.basis = nn.Buffer(torch.zeros(weight.shape))


class IgnoresSeed(Good):
    def __init__(self, weight: Tensor, config: Any) -> None:
        super().__init__(weight, config)
        nn.init.normal_(self.A, generator=torch.Generator().manual_seed(next(COUNTER)))


class ChangesInForward(Good):
    """Works on a state that a second forward, as checkpointing makes, finds changed."""

    def factors(self) -> tuple[Tensor, float, Tensor]:
        return self.B, self.scaling * next(COUNTER), self.A


class GroupForgotten(Good):
    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": [self.A], "lr": learning_rate}]


class RankClamped(Good):
    def __init__(self, weight: Tensor, config: Any) -> None:
        super().__init__(weight, type(config)(**{**config.as_dict(), "rank": min(config.rank, *weight.shape)}))


class TransformTransposed(Transform):
    def input_delta(self, x: Tensor, transposed: bool = False) -> Tensor:
        return super().input_delta(x)


class TransformDoubled(Transform):
    def input_delta(self, x: Tensor, transposed: bool = False) -> Tensor:
        return super().input_delta(x, transposed) + (0 if transposed else x)


MUTANTS: dict[Family, str] = {
    ScaleSquared: "alpha",
    AlphaDropped: "alpha",
    ScaleTwiceInDelta: "forward_is_delta_weight gradients parts",
    WeightAddedToDelta: "starts_at_base forward_is_delta_weight gradients parts",
    DeltaTransposed: "forward_is_delta_weight",
    FactorsSwapped: "forward_is_delta_weight parts",
    StartsOff: "starts_at_base",
    FactorDetached: "gradients",
    ParameterUnused: "gradients",
    WritesWeight: "delta_weight_is_pure",
    BuildsDense: "no_dense_tensor",
    StaysWide: "forward_is_delta_weight",
    ForgetsOnLoad: "round_trip",
    SavesBasis: "numbers",
    IgnoresSeed: "seed",
    ChangesInForward: "delta_weight_is_pure checkpointing",
    GroupForgotten: "parameter_groups",
    RankClamped: "bad_options",
    TransformTransposed: "forward_is_delta_weight gradients parts",
    TransformDoubled: "starts_at_base forward_is_delta_weight gradients parts",
}
BY_NAME = {check.__name__.removeprefix("check_"): check for check in CHECKS}
PAIRS = [(mutant, name) for mutant, names in MUTANTS.items() for name in names.split()]


@pytest.fixture(autouse=True)
def _docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant is documented as what it was made from."""
    for mutant in MUTANTS:
        monkeypatch.setattr(mutant, "__module__", mutant.__mro__[1].__module__)


@pytest.mark.parametrize(("mutant", "name"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_mutant_fails(mutant: Family, name: str) -> None:
    BY_NAME[name](mutant.__mro__[1], OPTIONS)  # so that it is the mutation that fails
    failures = (AssertionError, RuntimeError, ValueError, pytest.fail.Exception)
    with pytest.raises(failures):
        BY_NAME[name](mutant, OPTIONS)


def test_every_check_fails_on_some_mutant() -> None:
    assert {name for _, name in PAIRS} | {"two_at_once"} == set(BY_NAME)  # that one is about the plan, not a family


def test_plan_that_forgets_an_adapter_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgets(probes.Plan):
        def __init__(self, members: list[Any], blend: Any) -> None:
            super().__init__(members[:1], blend)

    monkeypatch.setattr(probes, "Plan", Forgets)
    with pytest.raises(AssertionError):
        conformance.check_two_at_once(Good, OPTIONS)


@pytest.mark.parametrize("formula", ["rank (in - out)", "rank in", "2 rank (in + out)", "rank² (in + out)"])
def test_wrong_count_in_the_docstring_fails(formula: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[Good.__module__]
    right = "rank (in + out) values"
    assert right in module.__doc__
    adapter = make(Good, OPTIONS, projection())
    assert declared_count(adapter) == 2 * (adapter.in_features + OUT)
    monkeypatch.setattr(module, "__doc__", re.sub(re.escape(right), f"{formula} values", module.__doc__))
    with pytest.raises(AssertionError):
        check_numbers(Good, OPTIONS)
