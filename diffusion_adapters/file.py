"""The adapter file: one safetensors file whose header says everything, written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .adapter import FAMILIES, AdapterInfo
from .adapter_set import AdapterSet
from .labels import architecture, hashes, labels
from .text import TextPart
from .tokens import TokenPart

FORMAT = "diffusion-adapters"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 25 * 2**20
BASE_KEYS = ("name", "class", "fingerprint")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def version() -> str:
    """The installed version of this library."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    try:
        return of("diffusion-adapters")
    except PackageNotFoundError:
        return "unknown"


def write_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: str | Path) -> Path:
    """Write `tensors` to `path` under a temporary name, sync, rename: if anything goes wrong an old file stays."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a .safetensors file")
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} is not finite in {value.dtype}; nothing was saved")
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            tensors = {key: value.contiguous() for key, value in tensors.items()}
            known = hashes(safetensors.torch.save(tensors)) if "modelspec.title" in metadata else {}
            stream.write(safetensors.torch.save(tensors, {**metadata, **known}))
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}; nothing was saved") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return path


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header text of a safetensors file, on the CPU. Never unpickles; ValueError names what is wrong."""
    path = Path(path)
    check_safetensors(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged safetensors file: {error}") from error


def check_safetensors(path: Path) -> None:
    """Raise FileNotFoundError or ValueError unless `path` can be a safetensors file with a header of sane size."""
    if not path.exists():
        raise FileNotFoundError(f"no adapter file at {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the .safetensors file inside it")
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(9)
    header = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or header > size - 8:
        if (
            path.suffix.lower() in PICKLE_SUFFIXES
            or start[:2] == b"PK"
            or (start[:1] == b"\x80" and start[1:2] <= b"\5")
        ):
            raise ValueError(
                f"{path}: a pickle can run code when read and is never loaded; ask for a .safetensors file"
            )
        raise ValueError(f"{path}: not a safetensors file, or truncated ({size} bytes, its header claims {header})")
    if header > MAX_HEADER_BYTES:
        raise ValueError(f"{path}: a header of {header} bytes exceeds the limit of {MAX_HEADER_BYTES}")


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """A file read into memory: what the adapter is, and its tensors by component, projection path and name."""

    path: Path
    info: AdapterInfo
    tensors: Mapping[str, Mapping[str, dict[str, Tensor]]]
    metadata: Mapping[str, str]
    text: Mapping[str, TextPart] = dataclasses.field(default_factory=dict)
    """What it changes in text encoders, by component."""
    tokens: Mapping[str, TokenPart] = dataclasses.field(default_factory=dict)
    """Its new tokens, by text encoder."""


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
    bases = {component: describe_base(adapter_set.denoiser) for component, adapter_set in holders.items()}
    parts = {"text_encoders": {component: part.as_dict() for component, part in (text or {}).items()}}
    parts["tokens"] = {component: part.as_dict() for component, part in (tokens or {}).items()}
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


def _header(info: AdapterInfo, bases: Mapping[str, Any], name: str, parts: Mapping[str, Any]) -> dict[str, str]:
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created_by": f"diffusion-adapters {version()}",
        "family": info.family,
        "config": info.config.as_dict(),
        "target_modules": info.target_modules,
        "base": bases,
        "trigger": info.trigger,
        "training": dict(info.training),
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
        if document["format_version"] > FORMAT_VERSION:
            raise ValueError(f"format version {document['format_version']} is newer than this library; update it")
        if document["format_version"] < 1:
            raise ValueError(f"format version {document['format_version']} does not exist")
        family = FAMILIES.canonical(document["family"])
        info = AdapterInfo(
            family=family,
            config=FAMILIES[family].Config.from_mapping(document["config"]),
            target_modules=tuple(document["target_modules"]) if document["target_modules"] else None,
            base={c: {key: str(base[key]) for key in BASE_KEYS} for c, base in document["base"].items()},
            trigger=document["trigger"],
            training=dict(document["training"]),
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
        text = {c: TextPart.from_dict(document["text_encoders"][c], values) for c, values in encoders.items()}
        new = {c: TokenPart.from_dict(document["tokens"][c], values) for c, values in rows.items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged header: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return AdapterFile(Path(path), info, nested, metadata, text, new)


def describe_base(denoiser: nn.Module) -> dict[str, Any]:
    """Name, class and fingerprint of a denoiser: a hash of where its projections are and how large."""
    config = getattr(denoiser, "config", {})
    places = {path: (p.out_features, p.in_features) for path, p in AdapterSet(denoiser).projections().items()}
    digest = hashlib.sha256(json.dumps(places, sort_keys=True).encode()).hexdigest()[:16]
    place = Path(str(config.get("_name_or_path", "")) if hasattr(config, "get") else "")
    name = place.parent.name if place.name in ("unet", "transformer", "transformer_2", "prior") else place.name
    found = {"name": name, "class": type(denoiser).__name__, "fingerprint": digest}
    return {**found, "architecture": architecture(denoiser)}
