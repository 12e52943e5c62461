"""Many adapter files at hand for one model: loaded when asked for, and put away again when others need the room."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .active import Dials, get_active_adapters, set_adapters, snapshot
from .attach import adapter_sets, check_names, delete_adapters, list_adapters
from .registry import nearest
from .store import load_adapter
from .text import text_parts


class AdapterShelf:
    """Adapter files by name. `set_adapters` loads what it names and has not loaded yet.

    Of those loaded, the least recently used that are not active are deleted from the model until at most `count`
    adapters, and `max_bytes` if given, are left. An active adapter stays, whatever the limits, and so does what was
    loaded otherwise. `files` maps names to files, folders or repositories as `load_adapter` takes them, or is a folder,
    each of whose `.safetensors` files stands under its stem. Raises ValueError, FileNotFoundError.
    """

    def __init__(
        self, model: Any, files: Mapping[str, str | Path] | str | Path, *, count: int = 8, max_bytes: int | None = None
    ) -> None:
        if count < 0 or (max_bytes is not None and max_bytes < 0):
            raise ValueError(f"count and max_bytes must not be negative, got {count} and {max_bytes}")
        self.model, self.count, self.max_bytes = model, count, max_bytes
        self.files = dict(files) if isinstance(files, Mapping) else _files_in(Path(files))
        self._used: dict[str, None] = {}  # what it has loaded, the least recently used first

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __contains__(self, name: object) -> bool:
        return name in self.files

    @property
    def loaded(self) -> list[str]:
        """What it has loaded and is still attached, the least recently used first."""
        attached = list_adapters(self.model)
        self._used = {name: None for name in self._used if name in attached}
        return list(self._used)

    def set_adapters(
        self, names: str | Sequence[str], adapter_weights: Any = None, *, domain_weights: Dials | None = None
    ) -> None:
        """As `diffusion_adapters.set_adapters`, with files that are loaded first. All or nothing."""
        names = [names] if isinstance(names, str) else list(names)
        attached = list_adapters(self.model)
        for name in names:
            if name not in self.files and name not in attached:
                raise ValueError(f"unknown adapter {name!r}, {nearest(name, [*self.files, *attached])}")
        missing = [name for name in dict.fromkeys(names) if name not in attached]
        restore = snapshot(self.model)
        fresh: list[str] = []
        try:
            for name in missing:
                load_adapter(self.model, self.files[name], name, adapter_weight=0.0)
                fresh.append(name)
            set_adapters(self.model, names, adapter_weights, domain_weights=domain_weights)
        except BaseException:
            if fresh:
                delete_adapters(self.model, fresh)
                restore()
            raise
        for name in names:
            if name in missing or name in self._used:
                self._used.pop(name, None)
                self._used[name] = None
        self.tidy()

    def tidy(self) -> list[str]:
        """Delete what exceeds the limits; the names. `set_adapters` does it, after others have changed something."""
        active = get_active_adapters(self.model)
        sizes = {name: adapter_bytes(self.model, name) for name in self.loaded}
        room = math.inf if self.max_bytes is None else self.max_bytes
        gone = []
        for name in list(sizes):
            if len(sizes) <= self.count and sum(sizes.values()) <= room:
                break
            if name not in active:
                gone.append(name)
                del sizes[name], self._used[name]
        if gone:
            delete_adapters(self.model, gone)
        return gone


def adapter_bytes(model: Any, name: str) -> int:
    """What the tensors of an adapter take. Raises ValueError for an unknown name."""
    sets = adapter_sets(model)
    check_names(sets, [name])
    adapters = [adapter for s in sets.values() if name in s.infos for adapter in s.of(name).values()]
    values = [value for adapter in adapters for value in (*adapter.parameters(), *adapter.buffers())]
    values += [value for part in text_parts(model, name).values() for value in part.tensors.values()]
    return sum(value.nbytes for value in {id(value): value for value in values}.values())


def set_adapter_device(model: Any, names: str | Sequence[str], device: str | torch.device) -> None:
    """Move the numbers of adapters, as `set_lora_device` of diffusers does: idle ones may rest on the CPU.

    One that acts computes on the device of the denoiser wherever its numbers rest, at the price of moving them.
    """
    names = [names] if isinstance(names, str) else list(names)
    sets = adapter_sets(model)
    check_names(sets, names)
    for adapter_set in sets.values():
        for name in names:
            for adapter in adapter_set.of(name).values() if name in adapter_set.infos else ():
                adapter.to(device)


def _files_in(folder: Path) -> dict[str, str | Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of adapter files at {folder}")
    return {file.stem.replace(".", "_"): file for file in sorted(folder.glob("*.safetensors"))}
