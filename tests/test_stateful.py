"""Any order of load, weigh, swap, fuse, delete, disable, cast, save: outputs stay those of a dense reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from diffusion_adapters import AdapterWeight, attach, store
from diffusion_adapters.adapter_set import AdapterSet
from diffusion_adapters.fuse import fuse_set
from diffusion_adapters.plan import Plan
from tests.hosts import HOSTS
from tests.stateful import User

SETTINGS = settings(
    derandomize=True, database=None, deadline=None, print_blob=False, report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def use(host: str, histories: int, operations: int, shrink: bool = True) -> int:
    """Let as many random users act on a tiny denoiser; how many operations they took."""
    kind: Any = type(f"User of {host}", (User,), {"host": host})
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    before = User.taken
    chosen = settings(SETTINGS, max_examples=histories, stateful_step_count=operations, phases=phases)
    run_state_machine_as_test(kind, settings=chosen)
    return User.taken - before


@pytest.mark.parametrize("host", HOSTS)
def test_a_short_history(host: str) -> None:
    assert use(host, 3, 20) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_a_thousand_operations(host: str) -> None:
    assert use(host, 12, 100) >= 1000


# ---- it must notice --------------------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def keeps_old_weights(patch: Patch) -> None:
    right = Plan._fold
    patch.setattr(Plan, "_fold", lambda self: self._folded[1] if self._folded else right(self))


def keeps_old_factors(patch: Patch) -> None:
    right = Plan.refresh
    patch.setattr(Plan, "refresh", lambda self, like=None: None if self.kept and like is not None else right(self))


def drops_the_second(patch: Patch) -> None:
    right: Callable[..., None] = Plan.__init__
    patch.setattr(Plan, "__init__", lambda self, members, *rest: right(self, members[:1], *rest))


def fuses_without_weights(patch: Patch) -> None:
    def fuse(adapter_set: AdapterSet) -> None:
        kept = dict(adapter_set.weights)
        adapter_set.weights = dict.fromkeys(kept, 1.0)
        fuse_set(adapter_set)
        adapter_set.weights = kept

    patch.setattr(attach, "fuse_set", fuse)


def forgets_scopes(patch: Patch) -> None:
    patch.setattr(AdapterWeight, "scope", lambda self, component, path: 1.0)


def leaves_fused_weights(patch: Patch) -> None:
    def unfuse(adapter_set: AdapterSet) -> None:
        adapter_set.fused = {}
        adapter_set.plan()

    patch.setattr(attach, "unfuse_set", unfuse)


def adds_what_is_fused(patch: Patch) -> None:
    right = AdapterSet.plan

    def plan(adapter_set: AdapterSet, *rest: Any) -> None:
        fused, adapter_set.fused = adapter_set.fused, {}
        right(adapter_set, *rest)
        adapter_set.fused = fused

    patch.setattr(AdapterSet, "plan", plan)


def loses_replaced_processors(patch: Patch) -> None:
    patch.setattr("diffusion_adapters.hooks.Before.heal", lambda self: True)


def enables_by_deleting(patch: Patch) -> None:
    right = AdapterSet.remove

    def remove(adapter_set: AdapterSet, name: str) -> None:
        right(adapter_set, name)
        adapter_set.set_weights(adapter_set.weights)

    patch.setattr(AdapterSet, "remove", remove)


def saves_another(patch: Patch) -> None:
    right = store.save_sets

    def save(sets: Mapping[str, AdapterSet], name: str, *rest: Any) -> Any:
        adapters = next(iter(sets.values())).of(name).values()
        values = [value for adapter in adapters for value in adapter.parameters()]
        for value in values:
            value.data.mul_(2)
        try:
            return right(sets, name, *rest)
        finally:
            for value in values:
                value.data.div_(2)

    patch.setattr(store, "save_sets", save)


QUICK = (drops_the_second, leaves_fused_weights, saves_another)
SLOW = (
    keeps_old_weights, keeps_old_factors, fuses_without_weights, adds_what_is_fused, loses_replaced_processors,
    enables_by_deleting, forgets_scopes,
)  # fmt: skip


@pytest.mark.parametrize("mutant", [*QUICK, *(pytest.param(mutant, marks=pytest.mark.slow) for mutant in SLOW)])
def test_a_user_notices(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):  # an error is noticed, too
        use("flux", 400, 30, shrink=False)
