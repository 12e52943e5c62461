"""Safetensors files: written whole or not at all, read without running anything and without trusting their header."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .labels import hashes

MAX_HEADER_BYTES = 25 * 2**20
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


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


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header text of a safetensors file."""
    path = Path(path)
    check_safetensors(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
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


def from_safetensors(kind: Any, source: str, **settings: Any) -> Any:
    """`kind.from_pretrained(source)` of diffusers or transformers, from safetensors alone.

    Raises ValueError with the file if its numbers are a pickle, else what `from_pretrained` raises.
    """
    try:
        return kind.from_pretrained(source, use_safetensors=True, **settings)
    except OSError as error:
        files = sorted(path for path in Path(source).rglob("*") if path.is_file()) if Path(source).is_dir() else []
        whole = {path.parent for path in files if path.suffix == ".safetensors"}
        pickles = [path for path in files if path.suffix in PICKLE_SUFFIXES and path.parent not in whole]
        if not pickles:
            raise
        raise ValueError(
            f"{pickles[0].relative_to(source)} in {source}: a pickle can run code when read and is never loaded; take "
            "a version of this model in .safetensors, or write one by save_pretrained where you trust the file"
        ) from error
