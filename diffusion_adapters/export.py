"""Export adapters to one plain LoRA file: exact where they are low rank, else by SVD with the error stated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .dialects import KOHYA_MODULES, check_dialect, layer_names, write_layer
from .file import describe_base, version
from .labels import labels
from .reduce import Cut, Factors, Loss, Stored, reduce_sum
from .safe import write_safetensors
from .sources import DEFAULT_RANK, Place, Sources
from .tokens import embeddings

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES |= {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


@dataclasses.dataclass(frozen=True)
class ExportReport(Loss):
    """What an export wrote: its largest rank, and ‖BA − ΔW‖ / ‖ΔW‖ over all projections and at the worst one.

    B and A are those in the file, so that the errors include the rounding to its dtype. `exact`: nothing but that
    rounding was lost.
    """

    path: Path
    rank: int
    exact: bool
    dtype: torch.dtype


@torch.no_grad()
def export_lora(
    model: Any,
    names: str | Sequence[str] | Mapping[str, Any] | None,
    path: str | Path,
    *,
    dialect: str = "diffusers",
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | str = torch.float32,
    adapter_weights: Any = None,
) -> ExportReport:
    """Write adapters as one LoRA file, whose weight is 1: stock `pipe.load_lora_weights` reads it.

    `names`: one adapter, or several, which are added up; None for those that are active, with their weights.
    `adapter_weights`: as in `set_adapters`, 1 if not given; scopes are taken along, what depends on step, region,
    sample or band is a ValueError.
    `dialect`: `diffusers` keys, or those of `kohya` (sd-scripts, and what reads its files) or `comfyui`, for bases that
    have them.
    `rank`, `energy`: an SVD of what is not low rank is cut at this rank (64 if neither is given), and where this share
    of its squared norm is reached. What is low rank is written as it is.
    New tokens go into a second file, NAME_emb, for `pipe.load_textual_inversion`.
    `dtype`: fp32, fp16 or bf16.
    """
    cut = Cut(DEFAULT_RANK if rank is None and energy is None else rank, energy)
    if (kind := DTYPES.get(str(dtype).removeprefix("torch."))) is None:
        raise ValueError(f"dtype must be one of {', '.join(list(DTYPES)[:3])}; got {dtype}")
    sources = Sources(model, names, adapter_weights, "exported")
    denoisers = {component: sources.sets[component].denoiser for component in sources.components()}
    check_dialect(dialect, denoisers)
    places = {(place.component, place.path): place for place in (*sources.places(), *sources.text_places())}
    found: dict[tuple[str, str], Factors] = {}
    for where, place in places.items():
        deltas = [delta for delta in place.deltas if delta.weight != 0]
        if not deltas:
            continue
        try:
            found[where] = reduce_sum(deltas, cut)
        except ValueError as error:
            raise ValueError(f"{'.'.join(where)}: {error}") from error
    if not found:
        raise ValueError(f"every weight of {', '.join(sources.names)} is 0; there is nothing to export")
    tensors, said = _layers(dialect, denoisers, places, found, kind)
    ranks = [factors.rank for factors in found.values()]
    exact = all(factors.wanted is None for factors in found.values())
    report = ExportReport(**vars(Loss.of(said)), path=Path(path), rank=max(ranks), exact=exact, dtype=kind)
    write_safetensors({key: value.cpu() for key, value in tensors.items()}, _header(sources, report, dialect), path)
    if tokens := sources.tokens():
        names = {"format": "pt", "tokens": " ".join(next(iter(tokens.values())).tokens)}
        write_safetensors(embeddings(tokens), names, report.path.with_name(f"{report.path.stem}_emb.safetensors"))
    return report


def _layers(
    dialect: str,
    denoisers: Mapping[str, nn.Module],
    places: Mapping[tuple[str, str], Place],
    found: Mapping[tuple[str, str], Factors],
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], dict[str, Stored]]:
    """Tensors by key, and what is stored by place."""
    names = layer_names(dialect, denoisers, found)
    ranks = {name: sum(found[p.where].rank for p in pieces if p.where in found) for name, pieces in names.items()}
    # One alpha for the file, the largest rank: diffusers takes one for all layers where the names are kohya's.
    alpha = float(max(ranks.values()))
    tensors: dict[str, Tensor] = {}
    said: dict[str, Stored] = {}
    for name, pieces in names.items():
        scale = 1.0 if dialect == "diffusers" else ranks[name] / alpha
        blocks: list[tuple[Tensor, Tensor] | int] = []
        for piece in pieces:
            if piece.where in found:
                stored = said[".".join(piece.where)] = found[piece.where].store(dtype, scale)
                up, down = _shaped(stored, places[piece.where].shape)
                blocks.append((up.roll(len(up) // 2, 0) if piece.swapped else up, down))
            else:
                layer: Any = denoisers[piece.component].get_submodule(piece.path)
                blocks.append(int(layer.out_features))
        tensors |= write_layer(dialect, name, blocks, alpha)
    return tensors, said


def _shaped(stored: Stored, shape: torch.Size) -> tuple[Tensor, Tensor]:
    if len(shape) == 2:
        return stored.up, stored.down
    return stored.up[..., None, None], stored.down.view(-1, *shape[1:])  # a convolution, then one of 1 x 1


def _header(sources: Sources, report: ExportReport, dialect: str) -> dict[str, str]:
    denoiser = sources.sets[sources.components()[0]].denoiser
    infos = [sources.info(name) for name in sources.names]
    info = infos[0]
    if len(infos) > 1:
        info = dataclasses.replace(info, trigger=sources.trigger(), training={})
    metadata = {
        "format": "pt",
        "exported_by": f"diffusion-adapters {version()}",
        "exported_from": ", ".join(dict.fromkeys(own.family for own in infos)),
        "relative_error": f"{report.relative_error:.3e}",
        "provenance": json.dumps({"method": "sum", "sources": sources.provenance()}),
        **labels(info, describe_base(denoiser), " + ".join(sources.names), report.rank),
    }
    if len(infos) > 1:
        metadata["modelspec.merged_from"] = ", ".join(sources.names)
    if dialect == "kohya":
        metadata["ss_network_module"] = KOHYA_MODULES[type(denoiser).__name__]
    return metadata
