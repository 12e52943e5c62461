"""Compose: a hybrid whose domains are adapters that exist, of any families, and whose mixing alone is left to train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .active import get_active_adapters, pipeline_of
from .adapter import FAMILIES, Adapter, AdapterInfo
from .attach import adapter_sets, check_names
from .build import Part, build_parts
from .dials import family_of_domains
from .file import family_of
from .merge import targets_of
from .sources import Sources
from .text import text_parts
from .tokens import token_parts


@torch.no_grad()
def compose_adapters(model: Any, new_name: str, domains: Mapping[str, str], *, trainable: bool = True) -> None:
    """Make a hybrid `new_name` of attached adapters, domain -> adapter name, and let it act in their place.

    ΔW is their sum: each part is a frozen copy of its adapter, on the projections that this has, with a dial of its own
    and a coefficient that starts at 1; the coefficients are trained, unless `trainable` is false. Save it like any
    other. Raises ValueError for fewer than two domains, for one that is a hybrid itself, and for an adapter that also
    changes text encoders or has new tokens, which have no dial; then nothing is attached.
    """
    if not isinstance(domains, Mapping) or len(domains) < 2:
        raise ValueError(f"a hybrid is composed of at least two domains, {{domain: adapter name}}; got {domains!r}")
    sets, family = adapter_sets(model), family_of_domains()
    check_names(sets, list(domains.values()))
    for domain, name in domains.items():
        if text_parts(model, name) or token_parts(model, name):
            raise ValueError(f"domain {domain!r}: adapter {name!r} also changes the text encoders, which have no dial")
    sources = Sources(model, list(dict.fromkeys(domains.values())), None, "composed")
    built: dict[str, dict[str, Adapter]] = {}
    for component in sources.components():
        sets[component].check_free(new_name)
        parts = _parts(sets[component], domains, family)
        built[component] = build_parts(sets[component].places(), parts)
    kinds = {
        domain: _declared(sources.info(name).family, sources.info(name).config) for domain, name in domains.items()
    }
    info = AdapterInfo(
        family=family,
        config=FAMILIES[family].Config.from_mapping({"parts": kinds}),
        target_modules=targets_of(sources, built),
        trigger=sources.trigger(),
        provenance={"method": "compose", "domains": dict(domains), "sources": sources.provenance()},
    )
    stay = {n: w for n, w in get_active_adapters(model).items() if n not in domains.values()}
    for component, adapters in built.items():
        train_mixing(adapters.values(), trainable)
        sets[component].insert(new_name, adapters, info, pipeline=pipeline_of(model))
    for adapter_set in sets.values():
        own = {n: w for n, w in {**stay, new_name: 1.0}.items() if n in adapter_set.infos}
        adapter_set.set_weights(own, pipeline=pipeline_of(model))


def train_mixing(adapters: Iterable[Adapter], trainable: bool = True, parts: bool = False) -> None:
    """Let the coefficients of hybrids be trained, unless `trainable` is false, and their parts, if `parts`."""
    for adapter in adapters:
        adapter.requires_grad_(parts)
        for value in adapter.parameters(recurse=False):  # its own, not those of its parts
            value.requires_grad_(trainable)


def _parts(adapter_set: Any, domains: Mapping[str, str], family: str) -> dict[str, Part]:
    """What the hybrid is on each projection that one of the adapters is on."""
    found: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {}
    for domain, name in domains.items():
        for path, adapter in adapter_set.of(name).items() if name in adapter_set.infos else ():
            kinds, tensors = found.setdefault(path, ({}, {}))
            kind = _declared(family_of(adapter), adapter.config)
            first = next((other for other, before in kinds.items() if before == kind), None)
            own = {key: value.detach() for key, value in adapter.state_dict().items()}
            buffers = [key for key, _ in adapter.named_buffers() if key in own]
            if first and all(torch.equal(own[key], tensors[f"parts.{first}.{key}"]) for key in buffers):
                own = {key: value for key, value in own.items() if key not in buffers}  # those of the first
            kinds[domain] = kind
            tensors |= {f"parts.{domain}.{key}": value for key, value in own.items()}
    made = {}
    for path, (kinds, tensors) in found.items():
        config = FAMILIES[family].Config.from_mapping({"parts": kinds})
        made[path] = Part(family, config, {"coefficients": torch.ones(len(kinds)), **tensors})
    return made


def _declared(family: str, config: Any) -> dict[str, Any]:
    return {"family": family, **config.as_dict()}
