"""What bases have encoded, by content: each picture and each text once, in memory or in a folder for other runs."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from train import output

LOG = logging.getLogger("train")
FORMAT = 1
"""Part of every key: raised when what an entry holds changes its meaning."""
SAMPLED = 64
"""Values of each tensor of an encoder that its fingerprint reads."""
Entry = dict[str, Tensor]


def digest(*parts: Any) -> str:
    """A key for these parts, told apart by their places."""
    return hashlib.sha256("\0".join(f"{len(str(part))}:{part}" for part in parts).encode()).hexdigest()


def fingerprint(modules: dict[str, nn.Module]) -> str:
    """Tells encoders of other weights, dtypes or shapes apart: names, shapes, and values spread over every tensor.

    Reading 64 values of each tensor takes no time; any training changes some of them in some tensor.
    """
    hashed = hashlib.sha256()
    for part, module in sorted(modules.items()):
        hashed.update(f"{part} {type(module).__name__}".encode())
        for name, value in sorted(module.state_dict().items()):
            if not isinstance(value, Tensor):
                continue
            hashed.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().reshape(-1)
            step = max(1, flat.numel() // SAMPLED)
            hashed.update(_bytes(flat[::step].contiguous().cpu()))
    return hashed.hexdigest()


class Store:
    """Entries by key. In memory they stay; with a folder each is a file, written whole and checked when it is read."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.found = self.made = 0
        self._entries: dict[str, Entry] = {}
        self._known: set[str] = set()

    def __getitem__(self, key: str) -> Entry:
        if self.folder is None:
            return self._entries[key]
        return _read(self._path(key))

    def add(self, key: str, make: Callable[[], Entry]) -> None:
        """Make the entry unless it is there. One that is damaged is made again, with a word."""
        if key in self._known:
            return
        if self.folder is not None and (path := self._path(key)).is_file():
            try:
                _read(path)
                self.found += 1
                self._known.add(key)
                return
            except (OSError, ValueError) as error:
                LOG.warning(f"{path} is damaged and made again: {error}")
        entry = {name: value.detach().cpu().contiguous() for name, value in make().items()}
        self.made += 1
        self._known.add(key)
        if self.folder is None:
            self._entries[key] = entry
        else:
            _write(self._path(key), entry)

    def report(self) -> Iterator[str]:
        """A line on what the folder held, if there is one."""
        if self.folder is not None:
            yield f"{self.folder}: {self.found} latents and embeddings found, {self.made} made"

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"


def check_cache_dir(folder: Path | None) -> None:
    """Raise ValueError or OSError for a folder that cannot be one or that cannot be written."""
    if folder is None:
        return
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"--latents_cache_dir {folder}: {above} is a file; give the name of a folder")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"--latents_cache_dir {folder}: cannot be written; choose another folder")


def check_space(folder: Path, pixels: int, texts: int, size: int) -> None:
    """Raise ValueError if the disk of a cache is too small for latents of so many pixels and for so many texts.

    Latents take 2 bytes of a pixel at most (2 × 16 fp32 values for 8 × 8), a text `size` bytes; what the folder holds
    is taken to be part of it.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    needed, free = 2 * pixels + size * texts - held, shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"--latents_cache_dir {folder}: {needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free; free some "
            "space, choose another folder, or leave it out to keep them in memory"
        )


def _bytes(value: Tensor) -> bytes:
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()


def _checksum(entry: Entry) -> str:
    hashed = hashlib.sha256()
    for name, value in sorted(entry.items()):
        hashed.update(name.encode() + _bytes(value))
    return hashed.hexdigest()


def _write(path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save(entry, {"sha256": _checksum(entry)})
    output.write(path, lambda temporary: temporary.write_bytes(data))


def _read(path: Path) -> Entry:
    """The tensors of an entry. Raises ValueError if they are not what was written."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            entry = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = (file.metadata() or {}).get("sha256")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: {error}; delete it") from None
    if said != _checksum(entry):
        raise ValueError(f"{path} does not hold what was written to it; delete it")
    return entry
