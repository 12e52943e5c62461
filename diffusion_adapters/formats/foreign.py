"""A file of another program, read into memory: layers by component and name, and what belongs to none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from ..adapter import FAMILIES
from ..safe import check_safetensors, read_safetensors
from .dialect import DIALECTS, Settings
from .tensors import split

WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
HEADER_TYPES = dict(zip(("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2"), WEIGHT_TYPES, strict=True))


@dataclasses.dataclass(frozen=True)
class ForeignFile:
    """Tensors by component, layer and name. Those of `strangers` (by key) are of no layer."""

    path: Path
    dialect: str
    layers: Mapping[tuple[str, str], dict[str, Tensor]]
    strangers: Mapping[str, Tensor]
    settings: Settings
    metadata: Mapping[str, str]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        layers = [value for own in self.layers.values() for value in own.values()]
        return sum(value.numel() for value in (*layers, *self.strangers.values()))


def read_foreign(path: Path, header_only: bool = False) -> ForeignFile:
    """Read a file of any dialect, or with meta tensors its header. ValueError for a damaged one and one of no dialect.

    Scales are not part of the header: `alpha` has its number in any case.
    """
    tensors, metadata = read_header(path) if header_only else read_safetensors(path)
    try:
        return _sorted(path, tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _sorted(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ForeignFile:
    for key, value in tensors.items():
        check_values(key, value)
    halves = {key: split(key) for key in tensors}
    name = recognise([front for front, _ in filter(None, halves.values())])
    if name is None:
        first = min(tensors, default="nothing at all")
        raise ValueError(f"no adapter file of a known kind: {len(tensors)} tensors, the first is {first[:80]!r}")
    dialect = DIALECTS[name]
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    strangers = {}
    for key, half in halves.items():
        place = None if half is None else dialect.place(half[0])
        if half is not None and half[1] == "oft_blocks" and tensors[key].ndim == 4:
            half = half[0], "boft_blocks"  # one spelling for blocks and for stages of blocks
        if half is None or place is None:
            strangers[key] = tensors[key]
        elif layers.setdefault(place, {}).setdefault(half[1], tensors[key]) is not tensors[key]:
            raise ValueError(f"{key} and another key are the same tensor of one layer")
    return ForeignFile(path, name, layers, strangers, dialect.settings(path, metadata), metadata)


def recognise(fronts: list[str]) -> str | None:
    """The dialect that most fronts of keys are of, None if none is of any."""
    counts = {name: sum(DIALECTS[name].place(front) is not None for front in fronts) for name in DIALECTS}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


def check_values(key: str, value: Tensor) -> None:
    """Raise ValueError for a tensor that is no finite weights."""
    if value.numel() == 0:
        raise ValueError(f"{key} has shape {tuple(value.shape)}, which holds no number")
    if value.dtype not in WEIGHT_TYPES and (value.numel() > 1 or value.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"{key} has dtype {str(value.dtype).removeprefix('torch.')}, which no adapter is stored in")
    if not value.is_meta and not bool(torch.isfinite(value.float() if value.itemsize < 2 else value).all()):
        raise ValueError(f"{key} is not finite")


def family_of(names: set[str]) -> str | None:
    """The family of a layer that has tensors of these names, None if there is none."""
    return next((name for name in FAMILIES if names - {"alpha"} in FAMILIES[name].foreign), None)


def missing_names(names: set[str]) -> set[str]:
    """What a layer lacks that has some of the tensors of a family; the least that there is, none if it has others."""
    own = names - {"alpha"}
    larger = [known - own for name in FAMILIES for known in FAMILIES[name].foreign if own < known]
    return set(min(larger, key=lambda lacking: (len(lacking), sorted(lacking)), default=set()))


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Meta tensors of the shapes and dtypes in a file, single numbers as they are, and its header text."""
    check_safetensors(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = {}
            for key in file.keys():  # noqa: SIM118
                part = file.get_slice(key)
                shape, dtype = part.get_shape(), HEADER_TYPES.get(part.get_dtype(), torch.uint8)
                small = torch.Size(shape).numel() == 1
                found[key] = file.get_tensor(key) if small else torch.empty(shape, dtype=dtype, device="meta")
            return found, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged safetensors file: {error}") from error
