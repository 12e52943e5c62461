"""The dials of hybrids: which domains an adapter has, and the weight of each, which acts like that of any adapter.

A domain is one more thing with a weight: in plans, tables of gains and slots it stands under `NAME/DOMAIN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .adapter import FAMILIES, Adapter
from .plan import Member
from .weight import AdapterWeight, check_domains

Shares = Mapping[str, Mapping[str, Adapter]]
"""By path and domain, what has a weight of its own; an adapter without domains stands under the empty name."""


def family_of_domains() -> str:
    """The name of the family whose options say what domains it has."""
    return next(name for name in FAMILIES if FAMILIES[name].Config().domains)


def shares(adapters: Mapping[str, Adapter]) -> Shares:
    """The shares of adapters by path."""
    return {path: {d: own.at({d: 1.0}) for d in own.config.domains} or {"": own} for path, own in adapters.items()}


def domains(adapter_set: Any, name: str) -> tuple[str, ...]:
    """The domains of adapter `name` that have a dial each, at whatever place; none unless it is a hybrid."""
    adapter_set.check(name)
    found = dict.fromkeys(adapter_set.infos[name].config.domains)
    for own in adapter_set.shares[name].values():
        found |= dict.fromkeys(domain for domain in own if domain)
    return tuple(found)


def dialed(adapter_set: Any, name: str, weight: AdapterWeight) -> dict[str, Adapter]:
    """The adapters of `name` by path, at the dials of `weight`."""
    dials = weight.dials(domains(adapter_set, name))
    return {path: adapter.at(dials) if dials else adapter for path, adapter in adapter_set.of(name).items()}


def spread_weights(adapter_set: Any, weights: Mapping[str, AdapterWeight]) -> dict[str, AdapterWeight]:
    """Each weight by name; of a hybrid one for each domain, times its dial. Raises ValueError for an unknown domain."""
    found: dict[str, AdapterWeight] = {}
    for name, weight in weights.items():
        known = domains(adapter_set, name)
        check_domains(weight, name, known)
        own = {f"{name}/{domain}": weight.times(dial) for domain, dial in weight.dials(known).items()}
        found |= own or {name: weight}
    return found


def members(adapter_set: Any, active: Mapping[str, AdapterWeight]) -> dict[str, list[Member]]:
    """The active adapters of each place, by what `spread_weights` gives."""
    found: dict[str, list[Member]] = {}
    for key, weight in active.items():
        name, _, domain = key.partition("/")
        for path, own in adapter_set.shares[name].items():
            scope = weight.scope(adapter_set.component, path)
            if domain in own and (scope != 0 or adapter_set.compiled):
                found.setdefault(path, []).append(Member(own[domain], key, scope))
    return found
