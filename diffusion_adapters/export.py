"""Export an adapter to a plain diffusers LoRA file: exact where it is low rank, else by SVD with the error stated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter import Adapter
from .attach import adapter_sets, check_names
from .file import describe_base, version, write_safetensors
from .labels import labels
from .linalg import dense_weight, truncated_svd
from .text import lora_tensors, text_parts
from .tokens import embeddings, token_parts


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What an export wrote: its largest rank, and ‖BA − ΔW‖ / ‖ΔW‖ over all projections and at the worst one."""

    path: Path
    rank: int
    relative_error: float
    worst_error: float
    worst_place: str

    @property
    def exact(self) -> bool:
        """Whether every projection is low rank as it is, so that nothing was approximated."""
        return self.relative_error == 0.0


@torch.no_grad()
def export_lora(
    model: Any, name: str, path: str | Path, *, rank: int = 64, dtype: torch.dtype = torch.float32
) -> ExportReport:
    """Write adapter `name` as a LoRA file that stock `pipe.load_lora_weights` reads; its weight there is 1.

    New tokens go into a second file, NAME_emb, for `pipe.load_textual_inversion`.
    `rank`: kept by the SVD of what is not low rank (1 to min(in, out)); an exact part keeps its own rank.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    sets = adapter_sets(model)
    check_names(sets, [name])
    tensors: dict[str, Tensor] = {}
    errors: dict[str, tuple[float, float]] = {}
    for component, adapter_set in sets.items():
        if name not in adapter_set.infos:
            continue
        projections = adapter_set.places()
        for place, adapter in adapter_set.of(name).items():
            before = adapter_set.fused.get(place)  # W as it was, if adapters are fused into it now
            weight = functools.partial(dense_weight, projections[place].base) if before is None else before.float
            try:
                (up, down), errors[f"{component}.{place}"] = _factors(adapter, weight, rank)
            except ValueError as error:
                raise ValueError(f"{component}.{place}: {error}") from error
            tensors[f"{component}.{place}.lora_A.weight"] = down.to(dtype)
            tensors[f"{component}.{place}.lora_B.weight"] = up.to(dtype)
    lost, whole = (sum(pair[i] ** 2 for pair in errors.values()) ** 0.5 for i in (0, 1))
    ratios = {place: lost / whole if whole else 0.0 for place, (lost, whole) in errors.items()}
    worst = max(ratios, key=ratios.__getitem__)
    report = ExportReport(
        Path(path),
        max(t.shape[0] for k, t in tensors.items() if "lora_A" in k),
        lost / whole if whole else 0.0,
        ratios[worst],
        worst,
    )
    holder = next(s for s in sets.values() if name in s.infos)
    metadata = {
        "format": "pt",
        "exported_by": f"diffusion-adapters {version()}",
        "exported_from": holder.infos[name].family,
        "relative_error": f"{report.relative_error:.3e}",
        **labels(holder.infos[name], describe_base(holder.denoiser), name, report.rank),
    }
    text = {key: value.to(dtype) for key, value in lora_tensors(text_parts(model, name)).items()}
    write_safetensors(tensors | text, metadata, path)
    if tokens := token_parts(model, name):
        names = {"format": "pt", "tokens": " ".join(next(iter(tokens.values())).tokens)}
        write_safetensors(embeddings(tokens), names, report.path.with_name(f"{report.path.stem}_emb.safetensors"))
    return report


def _factors(
    adapter: Adapter, weight: Callable[[], Tensor], rank: int
) -> tuple[tuple[Tensor, Tensor], tuple[float, float]]:
    """(B, A), and the norms of what they miss and of ΔW. `weight` gives W, if it must be read."""
    exact = adapter.low_rank()
    if exact is not None and not adapter.transforms_input and not adapter.adds_output:
        return exact, (0.0, 1.0)
    delta = adapter.delta_weight(weight())
    if not bool(torch.isfinite(delta).all()):
        raise ValueError("ΔW is not finite; nothing was saved")
    rest = delta if exact is None else delta - exact[0] @ exact[1]
    up, down, error = truncated_svd(rest, min(rank, *rest.shape))
    if exact is not None:
        up, down = torch.cat((exact[0], up), dim=1), torch.cat((exact[1], down))
    return (up, down), (error * float(rest.norm()), float(delta.norm()))
