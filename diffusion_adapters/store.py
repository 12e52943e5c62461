"""Save adapters from and load them onto a pipeline or a denoiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .active import Weight, get_active_adapters, pipeline_of, take_weights
from .adapter import Adapter
from .adapter_set import AdapterSet
from .attach import adapter_sets, check_names, find_denoisers
from .build import Part, build_parts
from .content import read_content
from .file import save_sets
from .hooks import find_adapter_set
from .outside import find_outside
from .source import find_file
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
    path_or_repo: str | Path,
    adapter_name: str | None = None,
    *,
    adapter_weight: Weight = 1.0,
    trainable: bool = False,
    leave_out: Sequence[str] = (),
    revision: str | None = None,
    subfolder: str | None = None,
    weight_name: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Load an adapter file onto a pipeline or denoiser, make it active beside those that are, return its name.

    `path_or_repo` is a file, a folder with one, or a repository on the Hub, whose `revision`, `subfolder`, file
    (`weight_name`) and access `token` may be given. Files of diffusers, PEFT, kohya, LyCORIS and others are read as
    well as ours. The name is the file's stem unless given. All or nothing: an error names the file and what is missing,
    unexpected or misshapen, and then the model is as it was; `leave_out` names components or layers of another
    program's file to do without. Raises FileNotFoundError, ValueError.
    """
    where = {"revision": revision, "subfolder": subfolder, "weight_name": weight_name, "token": token}
    path = find_file(path_or_repo, **where)  # type: ignore[arg-type]
    name = adapter_name or path.stem.replace(".", "_")
    try:
        content = read_content(model, path, leave_out)
        ready = {component: _ready(model, component, name, parts) for component, parts in content.parts.items()}
        sets = {component: adapter_set for component, (adapter_set, _) in ready.items()}
        domains = dict.fromkeys(d for _, own in ready.values() for a in own.values() for d in a.config.domains)
        weight = take_weights(model, sets, {name: adapter_weight}, domains)[name]
        try:
            load_text(model, name, content.text, trainable)
            load_tokens(model, name, content.tokens, trainable)
        except ValueError:
            delete_text(model, name)
            raise
    except (ValueError, RuntimeError) as error:
        message = str(error)
        raise type(error)(message if message.startswith(str(path)) else f"{path}: {message}") from error
    for adapter_set, adapters in ready.values():
        for adapter in adapters.values():
            adapter.requires_grad_(trainable)
        adapter_set.insert(name, adapters, content.info, weight, pipeline_of(model))
    if content.text:
        set_text(model, get_active_adapters(model))
    return name


def _ready(model: Any, component: str, name: str, parts: Mapping[str, Part]) -> tuple[AdapterSet, dict[str, Adapter]]:
    """The adapters of one denoiser by path, and the set that they are to join."""
    denoiser = find_denoisers(model)[component]
    adapter_set = find_adapter_set(denoiser) or AdapterSet(denoiser)
    adapter_set.check_free(name)
    inside = adapter_set.projections()
    places = {**inside, **find_outside(denoiser, [path for path in parts if path not in inside])}
    in_order = {path: parts[path] for path in places if path in parts}  # that of a new adapter's
    return adapter_set, build_parts(places, in_order)
