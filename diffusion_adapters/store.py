"""Save adapters from and load them onto a pipeline or a denoiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .active import Weight, get_active_adapters, pipeline_of, take_weights
from .adapter_set import AdapterSet
from .attach import adapter_sets, check_names, find_denoisers, match_targets
from .build import build_adapters
from .file import AdapterFile, describe_base, read_adapter, save_sets
from .hooks import find_adapter_set
from .text import delete_text, load_text, set_text, text_parts
from .tokens import load_tokens, token_parts


def save_adapter(
    model: Any,
    name: str,
    path: str | Path,
    *,
    trigger: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write adapter `name` to one `.safetensors` file, with the prompt it answers to and its training settings."""
    sets = adapter_sets(model)
    check_names(sets, [name])
    for adapter_set in sets.values():
        if name in adapter_set.infos:
            changes = {"trigger": trigger, "training": training}
            changes = {key: value for key, value in changes.items() if value is not None}
            adapter_set.infos[name] = dataclasses.replace(adapter_set.infos[name], **changes)  # type: ignore[arg-type]
    return save_sets(sets, name, path, text_parts(model, name), token_parts(model, name))


def load_adapter(
    model: Any,
    path: str | Path,
    adapter_name: str | None = None,
    *,
    adapter_weight: Weight = 1.0,
    trainable: bool = False,
) -> str:
    """Load an adapter file onto a pipeline or denoiser, make it active beside those that are, return its name.

    The name is the file's stem unless given. All or nothing: an error names the file and what is missing, unexpected
    or misshapen, and then the model is as it was. Raises FileNotFoundError, ValueError.
    """
    file = read_adapter(path)
    name = adapter_name or Path(path).stem.replace(".", "_")
    denoisers = find_denoisers(model)
    if len(file.tensors) == 1 and len(denoisers) == 1:
        pairs = [(next(iter(denoisers.values())), *next(iter(file.tensors.items())))]
    else:
        absent = sorted(set(file.tensors) - set(denoisers))
        if absent:
            raise ValueError(f"{path}: made for {', '.join(absent)}; this model has {', '.join(denoisers)}")
        pairs = [(denoisers[component], component, tensors) for component, tensors in file.tensors.items()]
    ready = []
    for denoiser, component, tensors in pairs:
        adapter_set = find_adapter_set(denoiser) or AdapterSet(denoiser)
        adapter_set.check_free(name)
        try:
            _check_places(file, component, adapter_set)
            projections = adapter_set.projections()
            places = [path for path in projections if path in tensors]  # in the order of a new adapter's
            built = build_adapters(projections, file.info.family, file.info.config, places, tensors)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{path}: {error}") from error
        ready.append((adapter_set, built))
    sets = {component: adapter_set for (_, component, _), (adapter_set, _) in zip(pairs, ready, strict=True)}
    weight = take_weights(model, sets, {name: adapter_weight})[name]
    try:
        load_text(model, name, file.text, trainable)
        load_tokens(model, name, file.tokens, trainable)
    except ValueError as error:
        delete_text(model, name)
        raise ValueError(f"{path}: {error}") from error
    for adapter_set, adapters in ready:
        for adapter in adapters.values():
            adapter.requires_grad_(trainable)
        adapter_set.insert(name, adapters, file.info, weight, pipeline_of(model))
    if file.text:
        set_text(model, get_active_adapters(model))
    return name


def _check_places(file: AdapterFile, component: str, adapter_set: AdapterSet) -> None:
    """Raise ValueError unless the file has exactly the projections that it aims at, and the base has them too."""
    made_for, here = file.info.base[component], describe_base(adapter_set.denoiser)
    known = list(adapter_set.projections())
    places = file.tensors[component]
    unknown = [place for place in places if place not in known]
    another = made_for["class"] == here["class"] and made_for["fingerprint"] != here["fingerprint"]
    if unknown or another:
        found = f"{len(unknown)} of {len(places)} projections do not exist here" if unknown else "its sizes are others"
        raise ValueError(
            f"made for another base, {_describe(made_for)}; this is {_describe(here)}: {found}"
            f"{f', the first is {unknown[0]}' if unknown else ''}"
        )
    missing = [place for place in match_targets(known, file.info.target_modules) if place not in places]
    if missing and not another and made_for["class"] == here["class"]:
        raise ValueError(f"incomplete: {len(missing)} projections are missing, the first is {missing[0]}")


def _describe(base: Mapping[str, Any]) -> str:
    return f"{base['class']} {base['name'] or '(no name)'} [{base['fingerprint']}]"
