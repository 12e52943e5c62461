"""Make the adapters of a family for given projections, fresh or from the tensors of a file; nothing is attached."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .adapter import FAMILIES, Adapter, AdapterConfig
from .linalg import dense_weight
from .projection import Projection


@dataclasses.dataclass(frozen=True)
class Part:
    """What there is to be on one projection: a family, its options, and its tensors unless it is new."""

    family: str
    config: AdapterConfig
    tensors: dict[str, Tensor] | None = None


def build_adapters(
    projections: Mapping[str, Projection], family: str, config: AdapterConfig, paths: Iterable[str]
) -> dict[str, Adapter]:
    """New adapters by path. Raises what `build_parts` raises."""
    return build_parts(projections, dict.fromkeys(paths, Part(family, config)))


def build_parts(projections: Mapping[str, Projection], parts: Mapping[str, Part]) -> dict[str, Adapter]:
    """Adapters by path, on the devices of their projections. Raises what the family raises, the place in front."""
    built = {}
    for path, part in parts.items():
        kind, base = FAMILIES[part.family], projections[path].base
        shape = (projections[path].out_features, projections[path].in_features)
        try:
            weight = dense_weight(base) if kind.reads(part.config) else torch.empty(shape, device="meta")
            with torch.inference_mode(False):
                if part.tensors is None:
                    adapter = kind(weight, part.config)
                else:
                    adapter = kind.from_tensors(weight, part.config, part.tensors)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{path}, weight {shape}: {error}") from error
        device = next(base.parameters(), torch.empty(0)).device
        built[path] = adapter if device.type in ("cpu", "meta") else adapter.to(device)
    return built
