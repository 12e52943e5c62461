"""What an adapter file changes in the models at hand, whoever wrote it; nothing is attached."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .adapter import AdapterInfo
from .adapter_set import AdapterSet
from .attach import find_denoisers, match_targets
from .build import Part
from .file import FORMAT, AdapterFile, describe_base, read_adapter
from .formats.evidence import base_of
from .formats.foreign import read_foreign
from .formats.translate import translate
from .hooks import find_adapter_set
from .safe import read_metadata
from .text import TextPart
from .tokens import TokenPart, find_text_encoders


@dataclasses.dataclass(frozen=True)
class Content:
    """Parts by component and path; LoRAs and new tokens by text encoder."""

    info: AdapterInfo
    parts: Mapping[str, Mapping[str, Part]]
    text: Mapping[str, TextPart]
    tokens: Mapping[str, TokenPart] = dataclasses.field(default_factory=dict)


def read_content(model: Any, path: Path, leave_out: Sequence[str] = ()) -> Content:
    """Read a file for a pipeline or a denoiser. Raises ValueError unless all of it but `leave_out` can be applied."""
    if FORMAT not in read_metadata(path):
        foreign = read_foreign(path)
        found = translate(foreign, find_denoisers(model), find_text_encoders(model), leave_out)
        found.check(base_of(foreign))
        return Content(found.info(foreign.metadata), found.parts, found.text)
    if leave_out:
        raise ValueError("leave_out is for files of other programs; give a scope of 0 to a part of this one")
    file = read_adapter(path)
    parts = {}
    for component, (home, adapter_set) in homes(file, model).items():
        _check_places(file, component, adapter_set)
        parts[home] = file.parts(component)
    return Content(file.info, parts, file.text, file.tokens)


def homes(file: AdapterFile, model: Any) -> dict[str, tuple[str, AdapterSet]]:
    """Component of the file -> component of the model and its set. A file of one goes into a model of one.

    Raises ValueError if the model lacks one.
    """
    denoisers = find_denoisers(model)
    absent = sorted(set(file.tensors) - set(denoisers))
    pairs = {component: component for component in file.tensors}
    if len(file.tensors) == 1 and len(denoisers) == 1:
        pairs = {next(iter(file.tensors)): next(iter(denoisers))}
    elif absent:
        raise ValueError(f"made for {', '.join(absent)}; this model has {', '.join(denoisers)}")
    return {c: (home, find_adapter_set(denoisers[home]) or AdapterSet(denoisers[home])) for c, home in pairs.items()}


def unknown_places(file: AdapterFile, component: str, adapter_set: AdapterSet) -> list[str]:
    """Places of the file that this denoiser lacks."""
    modules = {path for path, _ in adapter_set.denoiser.named_modules()}
    return [place for place in file.tensors[component] if place not in modules]


def missing_places(file: AdapterFile, component: str, adapter_set: AdapterSet) -> list[str]:
    """Places that the file aims at in this denoiser, and has nothing for."""
    places, known = file.tensors[component], list(adapter_set.projections())
    known += [place for place in places if place not in adapter_set.projections()]
    return [place for place in match_targets(known, file.info.target_modules) if place not in places]


def _check_places(file: AdapterFile, component: str, adapter_set: AdapterSet) -> None:
    """Raise ValueError unless the file has exactly the projections that it aims at, and the base has them too."""
    made_for, here = file.info.base[component], describe_base(adapter_set.denoiser)
    unknown = unknown_places(file, component, adapter_set)
    same_class = made_for["class"] == here["class"]
    if unknown or (same_class and made_for["fingerprint"] != here["fingerprint"]):
        count, found = len(file.tensors[component]), "its sizes are others"
        if unknown:
            found = f"{len(unknown)} of {count} projections do not exist here, the first is {unknown[0]}"
        raise ValueError(f"made for another base, {describe(made_for)}; this is {describe(here)}: {found}")
    missing = missing_places(file, component, adapter_set) if same_class else []
    if missing:
        raise ValueError(f"incomplete: {len(missing)} projections are missing, the first is {missing[0]}")


def describe(base: Mapping[str, Any]) -> str:
    """A base as the header of a file tells it."""
    return f"{base['class']} {base['name'] or '(no name)'} [{base['fingerprint']}]"
