"""The doctor: what an adapter file is, for which base, and whether it would load, without loading it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter import FAMILIES
from .attach import find_denoisers
from .content import describe, homes, missing_places, read_content, unknown_places
from .file import FORMAT, AdapterFile, read_adapter
from .formats import DIALECTS
from .formats.evidence import base_of, rank_of
from .formats.foreign import ForeignFile, family_of, read_foreign
from .formats.labels import tags_of, training_of, trigger_of
from .formats.translate import translate
from .outside import layer_shape
from .report import AdapterReport
from .safe import read_metadata
from .skeleton import Skeleton, skeleton
from .source import find_file
from .tokens import find_text_encoders


def inspect_adapter(
    path_or_repo: str | Path,
    base: Any = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    weight_name: str | None = None,
    token: str | bool | None = None,
) -> AdapterReport:
    """Tell what an adapter file is. With `base` (a pipeline, denoiser, path or Hub id) whether it would load.

    Nothing is loaded into a model. Of another program's file the header alone is read while there is no base. Raises
    what `load_adapter` raises for a file that is none.
    """
    where = {"revision": revision, "subfolder": subfolder, "weight_name": weight_name, "token": token}
    path = find_file(path_or_repo, **where)  # type: ignore[arg-type]
    model = skeleton(base, token) if isinstance(base, (str, Path)) else base
    if FORMAT in read_metadata(path):
        file = read_adapter(path)
        report, faults = _of_ours(file), None if model is None else _faults_of_ours(file, model)
    else:
        foreign = read_foreign(path, header_only=model is None)
        report, faults = _of_foreign(foreign), None if model is None else _faults_of_foreign(foreign, model)
    if faults is None:
        made = f"made for {report.base}, as {report.evidence}" if report.base else "nothing tells the base it is for"
        return dataclasses.replace(report, verdict=f"{made}; give a base to see whether it fits")
    return dataclasses.replace(report, **faults, **_verdict(model, path))


def _verdict(model: Any, path: Path) -> dict[str, Any]:
    name = model.name if isinstance(model, Skeleton) else type(model).__name__
    try:
        read_content(model, path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return {"checked_with": name, "fits": False, "verdict": f"does not load: {reason}"}
    return {"checked_with": name, "fits": True, "verdict": f"fits {name}: every layer would be applied"}


def _of_ours(file: AdapterFile) -> AdapterReport:
    info = file.info
    tensors = [value for places in file.tensors.values() for own in places.values() for value in own.values()]
    tensors += [value for part in file.text.values() for value in part.tensors.values()]
    tensors += [part.rows for part in file.tokens.values()]
    parts = [part for component in file.tensors for part in file.parts(component).values()]
    layers = {component: len(places) for component, places in file.tensors.items()}
    layers |= {component: len(part.tensors) // 2 for component, part in file.text.items()}
    return AdapterReport(
        path=file.path,
        size=file.path.stat().st_size,
        numbers=sum(value.numel() for value in tensors),
        dialect=FORMAT,
        format=json.loads(file.metadata[FORMAT])["created_by"],
        families=dict(Counter(part.family for part in parts)),
        layers=layers,
        ranks=sorted({part.config.rank for part in parts if hasattr(part.config, "rank")}),
        options=info.config.as_dict(),
        targets=info.target_modules or (),
        dtypes=_dtypes(tensors),
        base=", ".join(describe(base) for base in info.base.values()),
        evidence="its header says",
        trigger=info.trigger,
        training=dict(info.training),
        tokens={component: part.tokens for component, part in file.tokens.items()},
        domains=_domains(file),
    )


def _domains(file: AdapterFile) -> dict[str, dict[str, Any]]:
    """What the header says of each domain of a hybrid, on how many layers it is, and the range of its coefficients."""
    found: dict[str, list[float]] = {domain: [] for domain in file.info.config.domains}
    for part in (part for component in file.tensors for part in file.parts(component).values()):
        values = (part.tensors or {}).get("coefficients", torch.empty(0)).flatten().tolist()
        for domain, value in zip(part.config.domains, values, strict=False):
            found.setdefault(domain, []).append(value)
    said = file.info.config.as_dict().get("parts", {})
    spans = {d: {"layers": len(c), "coefficients": [min(c), max(c)] if c else []} for d, c in found.items()}
    return {domain: {**said.get(domain, {}), **span} for domain, span in spans.items()}


def _of_foreign(file: ForeignFile) -> AdapterReport:
    found, evidence = base_of(file) or (None, "")
    tensors = [value for own in file.layers.values() for value in own.values()]
    return AdapterReport(
        path=file.path,
        size=file.path.stat().st_size,
        numbers=file.numbers,
        dialect=file.dialect,
        format=f"keys of {getdoc(DIALECTS[file.dialect])}",
        families=dict(Counter(family_of(set(own)) or "unknown" for own in file.layers.values())),
        layers=dict(Counter(component for component, _ in file.layers)),
        ranks=sorted({rank for own in file.layers.values() if (rank := rank_of(own)) is not None}),
        dtypes=_dtypes([value for value in tensors if value.numel() > 1]),
        base=found,
        evidence=evidence,
        trigger=trigger_of(file.metadata),
        tags=tags_of(file.metadata),
        training=training_of(file.metadata),
    )


def _faults_of_foreign(file: ForeignFile, model: Any) -> dict[str, Any]:
    refused = translate(file, find_denoisers(model), find_text_encoders(model)).refused
    count = max(len(file.layers) + len(file.strangers), 1)
    kinds: dict[str, list[str]] = {"missing": [], "unused": [], "misshapen": []}
    for refusal in refused:
        kinds[refusal.kind].append(str(refusal))
    return {"coverage": 1 - len(refused) / count, **kinds}


def _faults_of_ours(file: AdapterFile, model: Any) -> dict[str, Any]:
    try:
        pairs = homes(file, model)
    except ValueError as error:
        return {"coverage": 0.0, "unused": [str(error)]}
    missing, unused, misshapen = [], [], []
    for component, (_, adapter_set) in pairs.items():
        unknown = unknown_places(file, component, adapter_set)
        unused += [f"{component}.{place}" for place in unknown]
        if not unknown:
            missing += [f"{component}.{place}" for place in missing_places(file, component, adapter_set)]
        for path, part in file.parts(component).items():
            if path not in unknown:
                shape = layer_shape(adapter_set.denoiser.get_submodule(path))
                try:
                    kind = FAMILIES[part.family]
                    kind(torch.empty(shape, device="meta"), part.config).check_tensors(part.tensors or {})
                except (ValueError, RuntimeError) as error:
                    misshapen.append(f"{component}.{path}, weight {shape}: {error}")
    text = find_text_encoders(model)
    absent = [component for component in file.text if component not in text]
    total = sum(len(places) for places in file.tensors.values()) + len(file.text)
    lost = len(unused) + len(misshapen) + len(absent)
    return {"coverage": 1 - lost / max(total, 1), "missing": missing, "unused": unused + absent, "misshapen": misshapen}


def _dtypes(tensors: Sequence[Tensor]) -> list[str]:
    return sorted({str(value.dtype).removeprefix("torch.") for value in tensors})
