"""Merge several adapters into one: the contract of a method, and the verb."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .active import get_active_adapters, pipeline_of
from .adapter import FAMILIES, Adapter, AdapterInfo, ForeignLayer
from .attach import match_targets
from .linalg import product_svd, truncated_svd
from .options import Options, option
from .reduce import Factors, Loss, Stored, side_by_side, weighted_sum
from .registry import Registry
from .sources import Delta, Place, Sources
from .text import TextPart, load_text, set_text, text_parts
from .tokens import find_text_encoders, token_parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergerConfig(Options):
    """Options that every method has: where an SVD is cut, if its result has no low rank of its own."""

    rank: int | None = option(None, "rank at most (default: the sum of the ranks merged; svd: the largest)", ge=1)
    energy: float | None = option(None, "share of its squared norm to keep, by the smallest rank that does", gt=0, le=1)


class Merger:
    """A method: makes one ΔW of those that several adapters have at one projection.

    One file in `mergers/` each, whose docstring gives the formula.
    """

    Config: ClassVar[type[MergerConfig]] = MergerConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, names: Sequence[str]) -> None:
        """Raise ValueError if the options do not suit so many adapters."""

    def merge(self, deltas: Sequence[Delta], where: str) -> Factors:
        """Factors of the merged ΔW. `where`: the projection, of which random numbers depend."""
        raise NotImplementedError

    def default_rank(self, deltas: Sequence[Delta]) -> int:
        """The rank at most, if neither `rank` nor `energy` is given."""
        return sum(delta.rank for delta in deltas)

    def limit(self, deltas: Sequence[Delta]) -> int | None:
        """The rank at most; None if `energy` alone decides."""
        given = self.config.rank is not None or self.config.energy is not None
        return self.config.rank if given else self.default_rank(deltas)

    def cut(self, delta: Tensor, deltas: Sequence[Delta]) -> Factors:
        """The best factors of a merged ΔW (out, in)."""
        up, down, _ = truncated_svd(delta, self.limit(deltas), self.energy)
        return Factors(up, down, lambda: delta)

    def cut_factors(self, up: Tensor, down: Tensor, deltas: Sequence[Delta]) -> Factors:
        """The best factors of a merged ΔW = B A; the smallest that are exact if they need not be cut."""
        return Factors(*product_svd(up, down, self.limit(deltas), self.energy), functools.partial(torch.mm, up, down))

    def cut_sum(self, deltas: Sequence[Delta]) -> Factors:
        """The best factors of Σ w ΔW; exact, and the smallest that are, where all are low rank and nothing cuts it."""
        exact = [(delta.weight * delta.exact[0], delta.exact[1]) for delta in deltas if delta.exact]
        if len(exact) < len(deltas):
            return self.cut(weighted_sum(deltas), deltas)
        return self.cut_factors(*side_by_side(exact), deltas)

    @property
    def energy(self) -> float:
        """The share to keep."""
        return 1.0 if self.config.energy is None else float(self.config.energy)


MERGERS: Registry[type[Merger]] = Registry("merge method", "diffusion_adapters.mergers")


@dataclasses.dataclass(frozen=True)
class MergeReport(Loss):
    """The adapter that a merge made: its largest rank, and ‖BA − ΔW‖ / ‖ΔW‖ in all and at the worst projection.

    ΔW is what the method asks for, so that the errors are those of the SVD and of rounding.
    """

    name: str
    rank: int

    @property
    def exact(self) -> bool:
        """Whether nothing but rounding separates the two."""
        return self.relative_error < 1e-6


@torch.no_grad()
def merge_adapters(
    model: Any,
    names: Sequence[str] | Mapping[str, Any] | None,
    new_name: str,
    *,
    method: str = "linear",
    weights: Any = None,
    **options: Any,
) -> MergeReport:
    """Merge adapters of any families into a new one of family lora, attached as `new_name` and not active.

    `names`: adapters, or a mapping name -> weight, or None for those that are active; `weights`: as in `set_adapters`.
    `method`: linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune, orthogonal or bands; `options` are its
    own (`python -m diffusion_adapters merge --help`). Parts in text encoders are merged alike. Raises ValueError, and
    then nothing is attached.
    """
    method = MERGERS.canonical(method)
    merger = MERGERS[method](MERGERS[method].Config.from_mapping(options))
    sources = Sources(model, names, weights, "merged")
    merger.check(sources.names)
    for adapter_set in sources.sets.values():
        adapter_set.check_free(new_name)
    if tokens := [name for name in sources.names if token_parts(model, name)]:
        raise ValueError(f"adapter {tokens[0]!r} has new tokens, which belong to it alone; export the blend instead")
    said: dict[str, Stored] = {}
    parts: dict[str, dict[str, Adapter]] = {component: {} for component in sources.components()}
    for place in sources.places():
        parts[place.component][place.path] = _adapter(place, *_merged(merger, place, said))
    text: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for place in sources.text_places():
        text.setdefault(place.component, {})[place.path] = _merged(merger, place, said)
    rank = max(stored.down.shape[0] for stored in said.values())
    provenance = {"method": method, "options": merger.config.as_dict(), "sources": sources.provenance()}
    info = AdapterInfo(
        family=_family(),
        config=_config(rank),
        target_modules=targets_of(sources, parts),
        trigger=sources.trigger(),
        provenance=provenance,
    )
    load_text(model, new_name, _text(model, sources, text), trainable=False)
    for component, adapters in parts.items():
        adapter_set = sources.sets[component]
        before, enabled = dict(adapter_set.weights), adapter_set.enabled
        adapter_set.insert(new_name, adapters, info)
        adapter_set.set_weights(before, enabled, pipeline_of(model))
    set_text(model, get_active_adapters(model))
    return MergeReport(**vars(Loss.of(said)), name=new_name, rank=rank)


def _merged(merger: Merger, place: Place, said: dict[str, Stored]) -> tuple[Tensor, Tensor]:
    where = f"{place.component}.{place.path}"
    try:
        factors = merger.merge(place.deltas, where)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    most = min(place.shape[0], place.shape.numel() // place.shape[0])
    if factors.rank > most:
        wanted = factors.wanted or functools.partial(torch.mm, factors.up, factors.down)
        factors = Factors(*product_svd(factors.up, factors.down, most), wanted)
    stored = said[where] = factors.store(torch.float32)
    if not bool(torch.isfinite(stored.up).all() and torch.isfinite(stored.down).all()):
        raise ValueError(f"{where}: the merged ΔW is not finite; nothing was attached")
    return stored.up, stored.down


def _family() -> str:
    """The family that any pair of factors is one of."""
    return next(name for name in FAMILIES if frozenset({"down", "up"}) in FAMILIES[name].foreign)


def _config(rank: int) -> Any:
    return FAMILIES[_family()].Config.from_mapping({"rank": rank, "alpha": float(rank)})


def _adapter(place: Place, up: Tensor, down: Tensor) -> Adapter:
    shape = (len(up), down.shape[1])
    with torch.inference_mode(False):
        kind = FAMILIES[_family()]
        config, tensors = kind.from_foreign(ForeignLayer({"down": down.clone(), "up": up.clone()}, shape))
        made = kind.from_tensors(torch.empty(shape, device="meta"), config, tensors)
    return made.requires_grad_(False).to(up.device)


def targets_of(sources: Sources, parts: Mapping[str, Mapping[str, Adapter]]) -> tuple[str, ...] | None:
    """What a file of the result must have: all projections, those that the sources aim at, or these very layers."""
    given = [sources.info(name).target_modules for name in sources.names]
    union = None if None in given else tuple(dict.fromkeys(target for own in given for target in own or ()))
    for component, own in parts.items():
        known = list(sources.sets[component].places())
        if set(match_targets(known, union)) != set(own):
            return tuple(dict.fromkeys(path for own in parts.values() for path in own))
    return union


def _text(
    model: Any, sources: Sources, found: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]
) -> dict[str, TextPart]:
    """Parts of text encoders, whose LoRA has one rank: smaller factors are filled up with zeros."""
    parts = {}
    for component, own in found.items():
        rank = max(len(down) for _, down in own.values())
        flat = not hasattr(find_text_encoders(model)[component], "text_model")
        tensors = {}
        for path, (up, down) in own.items():
            path = path.removeprefix("text_model.") if flat else path
            fill = rank - len(down)
            tensors[f"{path}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, fill))
            tensors[f"{path}.lora_B.weight"] = torch.nn.functional.pad(up, (0, fill))
        present = [text_parts(model, name).get(component) for name in sources.names]
        targets = dict.fromkeys(target for part in present if part is not None for target in part.target_modules)
        parts[component] = TextPart(rank, float(rank), tuple(targets), tensors)
    return parts
