"""The verbs that say which adapters act, and by how much: set, enable, disable, and for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .adapter_set import AdapterSet
from .attach import adapter_sets, check_names
from .text import set_text
from .tokens import find_text_encoders, set_tokens
from .weight import AdapterWeight, as_weight, check_scopes

Weight = float | Mapping[str, float] | AdapterWeight
"""What a weight may be given as; a mapping stands for `AdapterWeight(scopes=…)`."""


def set_adapters(
    model: Any,
    names: str | Sequence[str],
    adapter_weights: Weight | Sequence[Weight] | Mapping[str, Weight] | None = None,
) -> None:
    """Make exactly the adapters `names` active, each times its weight (1.0 if not given). `[]` gives the base.

    A weight is a number, a mapping of scopes or an `AdapterWeight`; one for all, a sequence of one each, or a mapping
    by adapter name. All or nothing: raises ValueError, TypeError for a weight that cannot be.
    """
    sets = adapter_sets(model)
    taken = named_weights(model, sets, names, adapter_weights)
    own = [(s, {name: weight for name, weight in taken.items() if name in s.infos}) for s in sets.values()]
    for adapter_set, its in own:
        adapter_set.set_weights(its, pipeline=pipeline_of(model))
    set_text(model, taken)
    set_tokens(model, taken)


def pipeline_of(model: Any) -> Any:
    """`model` if it is a pipeline, whose scheduler tells the denoising step."""
    return model if hasattr(model, "scheduler") else None


def named_weights(
    model: Any, sets: Mapping[str, AdapterSet], names: str | Sequence[str], adapter_weights: Any
) -> dict[str, float | AdapterWeight]:
    """Name -> weight for what `set_adapters` takes. Raises ValueError, TypeError."""
    names = [names] if isinstance(names, str) else list(names)
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"adapter {twice[0]!r} is named twice")
    check_names(sets, names)
    known = {name for adapter_set in sets.values() for name in adapter_set.infos}
    return take_weights(model, sets, _by_name(names, adapter_weights, known))


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
    model: Any, sets: Mapping[str, AdapterSet], weights: Mapping[str, Any]
) -> dict[str, float | AdapterWeight]:
    """Weights as they are kept: numbers as they are, all else as AdapterWeight. Raises ValueError, TypeError."""
    taken: dict[str, float | AdapterWeight] = {}
    for name, given in weights.items():
        weight = as_weight(given, name)
        if weight.scopes:
            places = [(component, path) for component, s in sets.items() for path in s.places()]
            check_scopes(weight, places + [(component, "") for component in find_text_encoders(model)])
        taken[name] = weight if isinstance(given, (Mapping, AdapterWeight)) else weight.value
    return taken


@contextlib.contextmanager
def use_adapters(model: Any, names: str | Sequence[str], adapter_weights: Any = None) -> Iterator[None]:
    """`set_adapters` inside a `with` block; afterwards the adapters act as before."""
    restore = snapshot(model)
    set_adapters(model, names, adapter_weights)
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
