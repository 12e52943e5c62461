"""The verbs: add, list, delete, fuse adapters on a denoiser or on a pipeline that has one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .adapter import FAMILIES, AdapterInfo
from .adapter_set import AdapterSet
from .build import build_adapters
from .fuse import fuse_set, unfuse_set
from .hooks import find_adapter_set
from .registry import nearest
from .text import delete_text
from .tokens import delete_tokens

DENOISER_NAMES = ("unet", "transformer", "transformer_2", "prior", "decoder")
"""Components of a diffusers pipeline that adapters go into."""


def find_denoisers(model: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by component name, or the one given. Raises TypeError for anything else."""
    if isinstance(model, nn.Module):
        model = getattr(model, "_orig_mod", model)  # a compiled module shares the processors of its original
        return {"unet" if "UNet" in type(model).__name__ else "transformer": model}
    components = getattr(model, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(f"expected a diffusers pipeline or a denoiser, got {type(model).__name__}")
    found = {name: components[name] for name in DENOISER_NAMES if isinstance(components.get(name), nn.Module)}
    if not found:
        raise TypeError(f"{type(model).__name__} has none of the components {', '.join(DENOISER_NAMES)}")
    return {name: getattr(module, "_orig_mod", module) for name, module in found.items()}


def adapter_sets(model: Any) -> dict[str, AdapterSet]:
    """The AdapterSet of each denoiser that has one, by component name."""
    found = {name: find_adapter_set(denoiser) for name, denoiser in find_denoisers(model).items()}
    sets = {name: adapter_set for name, adapter_set in found.items() if adapter_set is not None}
    if not isinstance(model, nn.Module):
        for name, adapter_set in sets.items():
            adapter_set.component = name
    return sets


def match_targets(paths: Sequence[str], target_modules: Sequence[str] | None) -> list[str]:
    """The projections among `paths` that a target names by whole path segments: `to_q`, `attn2.to_k`, `up_blocks.1`.

    None means all. Raises ValueError for a target that matches nothing, with the nearest name.
    """
    if target_modules is None:
        return list(paths)
    chosen = set()
    for target in target_modules:
        hits = [path for path in paths if f".{target}." in f".{path}."]
        if not hits:
            ends = {re.sub(r"^.*\.(?=[^.]*[^.\d][^.]*(\.\d+)?$)", "", path) for path in paths}
            segments = {part for path in paths for part in path.split(".") if not part.isdigit()}
            raise ValueError(f"unknown target {target!r} in target_modules, {nearest(target, ends | segments)}")
        chosen.update(hits)
    if not chosen:
        raise ValueError("target_modules names no projection; leave it out for all of them")
    return [path for path in paths if path in chosen]


def add_adapter(
    denoiser: Any, name: str, family: str = "lora", *, target_modules: str | Sequence[str] | None = None, **options: Any
) -> AdapterSet:
    """Put a new trainable adapter on a denoiser (or on the only denoiser of a pipeline) and make it active.

    `options` are those of the family. Nothing changes in the output until it is trained. Returns the AdapterSet, whose
    `parameters()` go to the optimizer. Raises ValueError, naming the place, and then nothing is attached.
    """
    found = find_denoisers(denoiser)
    if len(found) > 1:
        raise ValueError(f"the pipeline has several denoisers, pass one of them: {', '.join(found)}")
    (module,) = found.values()
    family = FAMILIES.canonical(family)
    config = FAMILIES[family].Config.from_mapping(options)
    adapter_set = find_adapter_set(module) or AdapterSet(module)
    adapter_set.check_free(name)
    if isinstance(target_modules, str):
        target_modules = [target_modules]
    projections = adapter_set.projections()
    paths = match_targets(list(projections), target_modules)
    targets = tuple(target_modules) if target_modules is not None else None
    info = AdapterInfo(family=family, config=config, target_modules=targets)
    adapter_set.insert(name, build_adapters(projections, family, config, paths), info)
    return adapter_set


def list_adapters(model: Any) -> dict[str, AdapterInfo]:
    """Name -> what is known of each attached adapter, active or not."""
    return {name: info for adapter_set in adapter_sets(model).values() for name, info in adapter_set.infos.items()}


def delete_adapters(model: Any, names: str | Sequence[str]) -> None:
    """Delete adapters. Without any the denoiser is bitwise what it was."""
    sets = adapter_sets(model)
    names = [names] if isinstance(names, str) else list(names)
    check_names(sets, names)
    for adapter_set in sets.values():
        for name in names:
            if name in adapter_set.infos:
                adapter_set.remove(name)
    for name in names:
        delete_text(model, name)
        delete_tokens(model, name)


def fuse_adapters(model: Any) -> None:
    """Add the active adapters to the weights of the denoiser, in fp32; `unfuse_adapters` restores every bit.

    All or nothing. Raises RuntimeError if no adapter is active.
    """
    done: list[AdapterSet] = []
    try:
        for adapter_set in adapter_sets(model).values():
            fuse_set(adapter_set)
            done.append(adapter_set)
        if not any(adapter_set.fused for adapter_set in done):
            raise RuntimeError("no adapter is active, nothing to fuse; call load_adapter() or set_adapters() first")
    except Exception:
        for adapter_set in done:
            if adapter_set.fused:
                unfuse_set(adapter_set)
        raise


def unfuse_adapters(model: Any) -> None:
    """Put the weights back, bitwise, that `fuse_adapters` changed. Raises RuntimeError if nothing is fused."""
    sets = [adapter_set for adapter_set in adapter_sets(model).values() if adapter_set.fused]
    if not sets:
        raise RuntimeError("no adapters are fused; call fuse_adapters() first")
    for adapter_set in sets:
        unfuse_set(adapter_set)


def coverage(model: Any) -> dict[str, bool]:
    """Path of each projection with an active adapter -> whether a forward has used it since adapters were last set."""
    sets = adapter_sets(model)
    return {f"{name}.{path}": called for name, s in sets.items() for path, called in s.coverage().items()}


def check_names(sets: Mapping[str, AdapterSet], names: Sequence[str]) -> None:
    """Raise ValueError for a name that no adapter in `sets` has, TypeError for what is no name."""
    known = {name for adapter_set in sets.values() for name in adapter_set.infos}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is no name of an adapter: it is {type(name).__name__}, not str")
        if name not in known:
            raise ValueError(f"unknown adapter {name!r}, {nearest(name, known)}")
