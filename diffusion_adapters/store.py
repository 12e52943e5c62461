"""Save adapters from and load them onto a pipeline or a denoiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .active import Weight, get_active_adapters, pipeline_of, take_weights
from .adapter import Adapter, AdapterInfo
from .adapter_set import AdapterSet
from .attach import adapter_sets, check_names, find_denoisers, match_targets
from .build import Part, build_parts
from .file import FORMAT, AdapterFile, describe_base, read_adapter, save_sets
from .formats.foreign import read_foreign
from .formats.translate import translate
from .hooks import find_adapter_set
from .outside import find_outside
from .safe import read_metadata
from .source import find_file
from .text import TextPart, delete_text, load_text, set_text, text_parts
from .tokens import TokenPart, find_text_encoders, load_tokens, token_parts


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


@dataclasses.dataclass(frozen=True)
class _Content:
    """What a file is to change: parts by component and path, LoRAs and new tokens of text encoders."""

    info: AdapterInfo
    parts: Mapping[str, Mapping[str, Part]]
    text: Mapping[str, TextPart]
    tokens: Mapping[str, TokenPart] = dataclasses.field(default_factory=dict)


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
        content = _ours(model, path) if FORMAT in read_metadata(path) else _foreign(model, path, leave_out)
        ready = {component: _ready(model, component, name, parts) for component, parts in content.parts.items()}
        sets = {component: adapter_set for component, (adapter_set, _) in ready.items()}
        weight = take_weights(model, sets, {name: adapter_weight})[name]
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


def _foreign(model: Any, path: Path, leave_out: Sequence[str]) -> _Content:
    file = read_foreign(path)
    found = translate(file, find_denoisers(model), find_text_encoders(model), leave_out)
    found.check()
    return _Content(found.info(file.metadata), found.parts, found.text)


def _ours(model: Any, path: Path) -> _Content:
    file = read_adapter(path)
    denoisers = find_denoisers(model)
    if len(file.tensors) == 1 and len(denoisers) == 1:
        homes = {next(iter(file.tensors)): next(iter(denoisers))}
    else:
        absent = sorted(set(file.tensors) - set(denoisers))
        if absent:
            raise ValueError(f"made for {', '.join(absent)}; this model has {', '.join(denoisers)}")
        homes = {component: component for component in file.tensors}
    for component, home in homes.items():
        _check_places(file, component, find_adapter_set(denoisers[home]) or AdapterSet(denoisers[home]))
    parts = {home: file.parts(component) for component, home in homes.items()}
    return _Content(file.info, parts, file.text, file.tokens)


def _check_places(file: AdapterFile, component: str, adapter_set: AdapterSet) -> None:
    """Raise ValueError unless the file has exactly the projections that it aims at, and the base has them too."""
    made_for, here = file.info.base[component], describe_base(adapter_set.denoiser)
    known = list(adapter_set.projections())
    modules = {path for path, _ in adapter_set.denoiser.named_modules()}
    places = file.tensors[component]
    unknown = [place for place in places if place not in modules]
    another = made_for["class"] == here["class"] and made_for["fingerprint"] != here["fingerprint"]
    if unknown or another:
        found = f"{len(unknown)} of {len(places)} projections do not exist here" if unknown else "its sizes are others"
        raise ValueError(
            f"made for another base, {_describe(made_for)}; this is {_describe(here)}: {found}"
            f"{f', the first is {unknown[0]}' if unknown else ''}"
        )
    known += [place for place in places if place not in known]
    missing = [place for place in match_targets(known, file.info.target_modules) if place not in places]
    if missing and not another and made_for["class"] == here["class"]:
        raise ValueError(f"incomplete: {len(missing)} projections are missing, the first is {missing[0]}")


def _describe(base: Mapping[str, Any]) -> str:
    return f"{base['class']} {base['name'] or '(no name)'} [{base['fingerprint']}]"
