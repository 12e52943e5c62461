"""The adapter file: one safetensors file whose header says everything, written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import FAMILIES, Adapter, AdapterConfig, AdapterInfo
from .adapter_set import AdapterSet
from .build import Part
from .labels import architecture, labels
from .safe import read_safetensors, write_safetensors
from .text import TextPart
from .tokens import TokenPart

FORMAT = "diffusion-adapters"
FORMAT_VERSION = 1
LAYERS_VERSION = 2
"""Of a file whose layers are not all of one family and options: it says so of each that differs."""
BASE_KEYS = ("name", "class", "fingerprint")


def version() -> str:
    """The installed version of this library."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    try:
        return of("diffusion-adapters")
    except PackageNotFoundError:
        return "unknown"


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """A file read into memory: what the adapter is, and its tensors by component, projection path and name."""

    path: Path
    info: AdapterInfo
    tensors: Mapping[str, Mapping[str, dict[str, Tensor]]]
    metadata: Mapping[str, str]
    text: Mapping[str, TextPart] = dataclasses.field(default_factory=dict)
    """What it changes in text encoders, by component."""
    layers: Mapping[str, tuple[str, AdapterConfig]] = dataclasses.field(default_factory=dict)
    """Family and options of what is not as `info` says, by component and path with a dot between."""

    tokens: Mapping[str, TokenPart] = dataclasses.field(default_factory=dict)
    """Its new tokens, by text encoder."""

    def parts(self, component: str) -> dict[str, Part]:
        """What there is to be on each projection of a component, by path."""
        usual = (self.info.family, self.info.config)
        own = self.tensors[component].items()
        return {path: Part(*self.layers.get(f"{component}.{path}", usual), tensors) for path, tensors in own}


def save_sets(
    sets: Mapping[str, AdapterSet],
    name: str,
    path: str | Path,
    text: Mapping[str, TextPart] | None = None,
    tokens: Mapping[str, TokenPart] | None = None,
) -> Path:
    """Write adapter `name` of every denoiser in `sets`, and its part in text encoders (by component), to one file."""
    holders = {component: adapter_set for component, adapter_set in sets.items() if name in adapter_set.infos}
    tensors = adapter_tensors(holders, name, text or {}, tokens or {})
    info = next(iter(holders.values())).infos[name]
    layers: dict[str, Any] = {}
    for component, adapter_set in holders.items():
        for place, adapter in adapter_set.of(name).items():
            if (family_of(adapter), adapter.config) != (info.family, info.config):
                own = {"family": family_of(adapter), "config": adapter.config.as_dict()}
                layers[f"{component}.{place}"] = own
    bases = {component: describe_base(adapter_set.denoiser) for component, adapter_set in holders.items()}
    parts = {"text_encoders": {component: part.as_dict() for component, part in (text or {}).items()}}
    parts["tokens"] = {component: part.as_dict() for component, part in (tokens or {}).items()}
    parts["layers"] = layers
    return write_safetensors(tensors, _header(info, bases, name, parts), path)


def adapter_tensors(
    sets: Mapping[str, AdapterSet], name: str, text: Mapping[str, TextPart], tokens: Mapping[str, TokenPart]
) -> dict[str, Tensor]:
    """The values of adapter `name` on the CPU, by their keys in a file."""
    tensors: dict[str, Tensor] = {}
    for component, adapter_set in sets.items():
        for place, adapter in adapter_set.of(name).items():
            tensors |= {f"{component}.{place}:{key}": value for key, value in adapter.state_dict().items()}
    tensors |= {f"{component}.{key}": value for component, part in text.items() for key, value in part.tensors.items()}
    tensors |= {f"{component}.tokens:rows": part.rows for component, part in tokens.items()}
    return {key: value.detach().cpu() for key, value in tensors.items()}


def family_of(adapter: Adapter) -> str:
    """The name of its family."""
    return next(name for name in FAMILIES if FAMILIES[name] is type(adapter))


def _header(info: AdapterInfo, bases: Mapping[str, Any], name: str, parts: Mapping[str, Any]) -> dict[str, str]:
    document = {
        "format": FORMAT,
        "format_version": LAYERS_VERSION if parts["layers"] else FORMAT_VERSION,
        "created_by": f"diffusion-adapters {version()}",
        "family": info.family,
        "config": info.config.as_dict(),
        "target_modules": info.target_modules,
        "base": bases,
        "trigger": info.trigger,
        "training": dict(info.training),
        **({"provenance": info.provenance} if info.provenance else {}),
        **{title: part for title, part in parts.items() if part},
    }
    spec = labels(info, next(iter(bases.values())), name)
    return {"format": "pt", FORMAT: json.dumps(document), **spec}


def read_adapter(path: str | Path) -> AdapterFile:
    """Read an adapter file. Raises ValueError for anything that is not wholly one of ours."""
    tensors, metadata = read_safetensors(path)
    if FORMAT not in metadata:
        raise ValueError(f"{path}: not a {FORMAT} file (its header has no {FORMAT!r} entry)")
    try:
        document = json.loads(metadata[FORMAT])
        if document["format_version"] > LAYERS_VERSION:
            raise ValueError(f"format version {document['format_version']} is newer than this library; update it")
        if document["format_version"] < 1:
            raise ValueError(f"format version {document['format_version']} does not exist")
        family, config = _kind(document)
        info = AdapterInfo(
            family=family,
            config=config,
            target_modules=tuple(document["target_modules"]) if document["target_modules"] else None,
            base={c: {key: str(base[key]) for key in BASE_KEYS} for c, base in document["base"].items()},
            trigger=document["trigger"],
            training=dict(document["training"]),
            provenance=dict(document.get("provenance", {})),
        )
        nested: dict[str, dict[str, dict[str, Tensor]]] = {component: {} for component in info.base}
        encoders: dict[str, dict[str, Tensor]] = {component: {} for component in document.get("text_encoders", {})}
        rows: dict[str, dict[str, Tensor]] = {component: {} for component in document.get("tokens", {})}
        for key, value in tensors.items():
            place, _, tensor = key.rpartition(":")
            component, _, projection = (place or key).partition(".")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{key} is not finite")
            if component in rows and tensor == "rows":
                rows[component][tensor] = value
            elif component in encoders:
                encoders[component][projection] = value
            else:
                nested[component].setdefault(projection, {})[tensor] = value
        layers = {place: _kind(own) for place, own in document.get("layers", {}).items()}
        text = {c: TextPart.from_dict(document["text_encoders"][c], values) for c, values in encoders.items()}
        new = {c: TokenPart.from_dict(document["tokens"][c], values) for c, values in rows.items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged header: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return AdapterFile(Path(path), info, nested, metadata, text, layers, new)


def _kind(document: Mapping[str, Any]) -> tuple[str, AdapterConfig]:
    family = FAMILIES.canonical(document["family"])
    return family, FAMILIES[family].Config.from_mapping(document["config"])


def describe_base(denoiser: nn.Module) -> dict[str, Any]:
    """Name, class and fingerprint of a denoiser: a hash of where its projections are and how large."""
    config = getattr(denoiser, "config", {})
    places = {path: (p.out_features, p.in_features) for path, p in AdapterSet(denoiser).projections().items()}
    digest = hashlib.sha256(json.dumps(places, sort_keys=True).encode()).hexdigest()[:16]
    place = Path(str(config.get("_name_or_path", "")) if hasattr(config, "get") else "")
    name = place.parent.name if place.name in ("unet", "transformer", "transformer_2", "prior") else place.name
    found = {"name": name, "class": type(denoiser).__name__, "fingerprint": digest}
    return {**found, "architecture": architecture(denoiser)}
