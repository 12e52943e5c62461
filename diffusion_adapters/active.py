"""The verbs that say which adapters act, and by how much: set, enable, disable, and for a while."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .adapter_set import AdapterSet
from .attach import adapter_sets, check_names
from .dials import domains as domains_of
from .registry import nearest
from .text import set_text
from .tokens import find_text_encoders, set_tokens
from .weight import AdapterWeight, as_weight, check_domains, check_scopes

Weight = float | Mapping[str, float] | AdapterWeight
"""What a weight may be given as; a mapping stands for `AdapterWeight(scopes=…)`."""
Dials = Mapping[str, float] | Mapping[str, Mapping[str, float]]
"""Domain -> number, or that by adapter name."""


def set_adapters(
    model: Any,
    names: str | Sequence[str],
    adapter_weights: Weight | Sequence[Weight] | Mapping[str, Weight] | None = None,
    *,
    domain_weights: Dials | None = None,
) -> None:
    """Make exactly the adapters `names` active, each times its weight (1.0 if not given). `[]` gives the base.

    A weight is a number, a mapping of scopes or an `AdapterWeight`; one for all, a sequence of one each, or a mapping
    by adapter name. `domain_weights`: the dials of a hybrid, domain -> number, 1.0 of those that are left out; by
    adapter name where several are named. All or nothing: raises ValueError, TypeError for a weight that cannot be.

    In training, call `backward` before other dials are set: gradient checkpointing runs the forward again in it.
    """
    sets = adapter_sets(model)
    taken = named_weights(model, sets, names, adapter_weights, domain_weights)
    own = [(s, {name: weight for name, weight in taken.items() if name in s.infos}) for s in sets.values()]
    for adapter_set, its in own:
        adapter_set.set_weights(its, pipeline=pipeline_of(model))
    set_text(model, taken)
    set_tokens(model, taken)


def pipeline_of(model: Any) -> Any:
    """`model` if it is a pipeline, whose scheduler tells the denoising step."""
    return model if hasattr(model, "scheduler") else None


def named_weights(
    model: Any,
    sets: Mapping[str, AdapterSet],
    names: str | Sequence[str],
    adapter_weights: Any,
    domain_weights: Dials | None = None,
) -> dict[str, float | AdapterWeight]:
    """Name -> weight for what `set_adapters` takes. Raises ValueError, TypeError."""
    names = [names] if isinstance(names, str) else list(names)
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"adapter {twice[0]!r} is named twice")
    check_names(sets, names)
    known = {name for adapter_set in sets.values() for name in adapter_set.infos}
    return take_weights(model, sets, _with_dials(_by_name(names, adapter_weights, known), domain_weights))


def _with_dials(given: dict[str, Any], dials: Any) -> dict[str, Any]:
    if dials is None:
        return given
    if not isinstance(dials, Mapping):
        raise TypeError(f"domain_weights must be a mapping of domains to numbers, got {type(dials).__name__}")
    if not any(isinstance(own, Mapping) for own in dials.values()):
        if len(given) != 1:
            raise ValueError(
                f"domain_weights must be by adapter name for {len(given)} adapters: {{{', '.join(map(repr, given))}}} "
                "-> {domain: number}"
            )
        dials = dict.fromkeys(given, dials)
    for name, own in dials.items():
        if name not in given:
            raise ValueError(f"domain_weights names adapter {name!r}, which is not in names, {nearest(name, given)}")
        weight = as_weight(given[name], name)
        if weight.domains:
            raise ValueError(f"adapter {name!r} has domains in its weight already; give them once")
        given[name] = dataclasses.replace(weight, domains=own)
    return given


def _by_name(names: list[str], given: Any, known: set[str]) -> dict[str, Any]:
    if given is None:
        given = 1.0
    if isinstance(given, Mapping) and (not given or any(key in known for key in given)):
        extra = sorted(set(given) - set(names))
        if extra:
            raise ValueError(f"adapter_weights names adapters that are not in names: {', '.join(extra)}")
        return {name: given.get(name, 1.0) for name in names}
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != len(names):
            raise ValueError(f"{len(given)} adapter_weights for {len(names)} adapters: {', '.join(names)}")
        return dict(zip(names, given, strict=True))
    return dict.fromkeys(names, given)


def take_weights(
    model: Any, sets: Mapping[str, AdapterSet], weights: Mapping[str, Any], domains: Iterable[str] | None = None
) -> dict[str, float | AdapterWeight]:
    """Weights as they are kept: numbers as they are, all else as AdapterWeight. Raises ValueError, TypeError.

    `domains`: those of an adapter that is not in `sets` yet.
    """
    taken: dict[str, float | AdapterWeight] = {}
    for name, given in weights.items():
        weight = as_weight(given, name)
        if weight.scopes:
            places = [(component, path) for component, s in sets.items() for path in s.places()]
            check_scopes(weight, places + [(component, "") for component in find_text_encoders(model)])
        if weight.domains:
            own = dict.fromkeys(d for s in sets.values() if name in s.infos for d in domains_of(s, name))
            check_domains(weight, name, own if domains is None else domains)
            given = dataclasses.replace(weight, domains=weight.dials(own if domains is None else domains))
            weight = given
        taken[name] = weight if isinstance(given, (Mapping, AdapterWeight)) else weight.value
    return taken


@contextlib.contextmanager
def use_adapters(
    model: Any, names: str | Sequence[str], adapter_weights: Any = None, *, domain_weights: Dials | None = None
) -> Iterator[None]:
    """`set_adapters` inside a `with` block; afterwards the adapters act as before."""
    restore = snapshot(model)
    set_adapters(model, names, adapter_weights, domain_weights=domain_weights)
    try:
        yield
    finally:
        restore()


def snapshot(model: Any) -> Callable[[], None]:
    """A function that lets the adapters act again as they do now, those that are still there."""
    before = [(s, dict(s.weights), s.enabled) for s in adapter_sets(model).values()]

    def restore() -> None:
        for adapter_set, weights, enabled in before:
            kept = {name: weight for name, weight in weights.items() if name in adapter_set.infos}
            adapter_set.set_weights(kept, enabled, pipeline_of(model))
        set_text(model, get_active_adapters(model))
        set_tokens(model, get_active_adapters(model))

    return restore


def get_active_adapters(model: Any) -> dict[str, float | AdapterWeight]:
    """Name -> weight of the adapters that act in the next forward: a number, or an AdapterWeight if one was given."""
    active: dict[str, float | AdapterWeight] = {}
    for adapter_set in adapter_sets(model).values():
        if adapter_set.enabled:
            active.update(adapter_set.weights)
    return active


def disable_adapters(model: Any) -> None:
    """Turn all adapters off, keeping their weights for `enable_adapters`."""
    for adapter_set in adapter_sets(model).values():
        adapter_set.set_weights(adapter_set.weights, enabled=False)
    set_text(model, {})
    set_tokens(model, {})


def enable_adapters(model: Any) -> None:
    """Turn the adapters on again that `disable_adapters` turned off."""
    for adapter_set in adapter_sets(model).values():
        adapter_set.set_weights(adapter_set.weights, enabled=True)
    set_text(model, get_active_adapters(model))
    set_tokens(model, get_active_adapters(model))
