"""Make the adapters of a family for given projections, fresh or from the tensors of a file; nothing is attached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .adapter import FAMILIES, Adapter, AdapterConfig
from .linalg import dense_weight
from .projection import Projection


def build_adapters(
    projections: Mapping[str, Projection],
    family: str,
    config: AdapterConfig,
    paths: Iterable[str],
    tensors: Mapping[str, dict[str, Tensor]] | None = None,
) -> dict[str, Adapter]:
    """Adapters by path, on the devices of their projections. Raises what the family raises, the place in front."""
    kind = FAMILIES[family]
    built = {}
    for path in paths:
        base = projections[path].base
        shape = (projections[path].out_features, projections[path].in_features)
        try:
            weight = dense_weight(base) if kind.reads_weight else torch.empty(shape, device="meta")
            with torch.inference_mode(False):
                adapter = kind(weight, config) if tensors is None else kind.from_tensors(weight, config, tensors[path])
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{path}, weight {shape}: {error}") from error
        device = next(base.parameters(), torch.empty(0)).device
        built[path] = adapter if device.type in ("cpu", "meta") else adapter.to(device)
    return built
