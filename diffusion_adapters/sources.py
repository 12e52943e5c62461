"""Adapters times constant weights, projection by projection: what an export, a merge and a bake are made of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .active import get_active_adapters, named_weights
from .adapter import AdapterInfo
from .attach import adapter_sets
from .dials import dialed
from .file import adapter_tensors
from .labels import hashes
from .linalg import dense_weight
from .outside import is_convolution
from .text import TextPart, text_parts
from .tokens import TokenPart, token_parts
from .weight import AdapterWeight, as_weight

DEFAULT_RANK = 64
"""Kept of what is not low rank, if nothing else is asked for."""


@dataclasses.dataclass(frozen=True)
class Delta:
    """What one adapter does to one projection, times its weight there.

    `factors`: (B, A) of its low-rank part at weight 1, (out, rank) and (rank, in), if it has one. `dense`: gives ΔW at
    weight 1 where the factors are not all of it.
    """

    name: str
    weight: float
    factors: tuple[Tensor, Tensor] | None
    dense: Callable[[], Tensor] | None = None

    @property
    def exact(self) -> tuple[Tensor, Tensor] | None:
        """The factors, if they are all of it."""
        return self.factors if self.dense is None else None

    @property
    def rank(self) -> int:
        """The rank of its factors; of what is not low rank, that at which it is cut if nothing else is asked for."""
        return DEFAULT_RANK if self.exact is None else self.exact[1].shape[0]

    def full(self) -> Tensor:
        """ΔW (out, in) at weight 1, in fp32. Raises ValueError if it is not finite."""
        if self.dense is None:
            assert self.factors is not None
            return self.factors[0] @ self.factors[1]
        delta = self.dense()
        if not bool(torch.isfinite(delta).all()):
            raise ValueError(f"ΔW of {self.name!r} is not finite; nothing was saved")
        return delta


@dataclasses.dataclass(frozen=True)
class Place:
    """One projection with what the adapters do to it. `shape`: of its weight, (out, in) or that of a convolution."""

    component: str
    path: str
    shape: torch.Size
    deltas: list[Delta]


class Sources:
    """Adapters of `model` by name, each with a constant weight.

    `names`: one, several, a mapping name -> weight, or None for those that are active, with their weights. Raises
    ValueError for a weight that depends on step, region, sample or band: `action` says what cannot be done with it.
    """

    def __init__(
        self, model: Any, names: str | Sequence[str] | Mapping[str, Any] | None, given: Any, action: str
    ) -> None:
        self.model, self.sets = model, adapter_sets(model)
        if names is None:
            names = get_active_adapters(model)
            if not names:
                raise ValueError("no adapter is active; name the adapters")
        if isinstance(names, Mapping) and given is None:
            given = dict(names)
        taken = named_weights(model, self.sets, names if isinstance(names, str) else list(names), given)
        if not taken:
            raise ValueError("names is empty; name at least one adapter")
        self.names = list(taken)
        self.weights = {name: as_weight(weight, name) for name, weight in taken.items()}
        for name, weight in self.weights.items():
            reason = _varies(weight)
            if reason:
                raise ValueError(
                    f"adapter {name!r} cannot be {action}: its weight depends on {reason}, and a file holds one ΔW for "
                    "all of them; give it a number or scopes"
                )

    def info(self, name: str) -> AdapterInfo:
        """What is known of the adapter `name`."""
        return next(s.infos[name] for s in self.sets.values() if name in s.infos)

    def trigger(self) -> str | None:
        """The prompts that they answer to, in a row."""
        return ", ".join(dict.fromkeys(t for name in self.names if (t := self.info(name).trigger))) or None

    def components(self) -> list[str]:
        """The denoisers that have one of the adapters."""
        return [component for component, s in self.sets.items() if any(name in s.infos for name in self.names)]

    def places(self) -> Iterator[Place]:
        """Every projection of a denoiser that one of the adapters changes, whatever its weight there."""
        for component in self.components():
            adapter_set = self.sets[component]
            own = {name: self.weights[name] for name in self.names if name in adapter_set.infos}
            found = {name: dialed(adapter_set, name, weight) for name, weight in own.items()}
            for path, projection in adapter_set.places().items():
                before = adapter_set.fused.get(path)  # W as it was, if adapters are fused into it now
                read = functools.partial(dense_weight, projection.base) if before is None else before.float
                deltas = []
                for name, adapters in found.items():
                    adapter = adapters.get(path)
                    if adapter is None:
                        continue
                    factors = adapter.low_rank()
                    whole = factors is not None and not adapter.transforms_input and not adapter.adds_output
                    dense = None if whole else functools.partial(_dense, adapter, read)
                    weight = own[name].at(component, path)
                    dials = own[name].dials(adapter.config.domains).values()
                    deltas.append(Delta(name, weight if any(dials) or not dials else 0.0, factors, dense))
                if deltas:
                    size = torch.Size((projection.out_features, projection.in_features))
                    shape = projection.base.weight.shape if is_convolution(projection.base) else size
                    yield Place(component, path, shape, deltas)

    def text_places(self) -> Iterator[Place]:
        """The same of text encoders. The path begins with `text_model`, as in files, whatever transformers has."""
        found: dict[tuple[str, str], list[Delta]] = {}
        for name in self.names:
            for component, part in text_parts(self.model, name).items():
                for path, factors in text_factors(part).items():
                    delta = Delta(name, self.weights[name].whole(component), factors)
                    found.setdefault((component, path), []).append(delta)
        for (component, path), deltas in found.items():
            up, down = deltas[0].factors  # type: ignore[misc]
            yield Place(component, path, torch.Size((up.shape[0], down.shape[1])), deltas)

    def tokens(self) -> dict[str, TokenPart]:
        """The new tokens of all of them, by the component name of the text encoder."""
        found: dict[str, TokenPart] = {}
        for name in self.names:
            for component, part in token_parts(self.model, name).items():
                before = found.get(component)
                rows = part.rows if before is None else torch.cat((before.rows, part.rows))
                found[component] = TokenPart((*(() if before is None else before.tokens), *part.tokens), rows)
        return found

    def provenance(self) -> list[dict[str, Any]]:
        """Name, family, weight and sha256 of the values of each, for a header. A file of it has the same sha256."""
        said = []
        for name in self.names:
            weight = self.weights[name]
            sets = {c: s for c, s in self.sets.items() if name in s.infos}
            parts = text_parts(self.model, name), token_parts(self.model, name)
            digest = hashes(safetensors.torch.save(adapter_tensors(sets, name, *parts)))["sshs_model_hash"]
            own = {"name": name, "family": self.info(name).family, "weight": weight.value, "sha256": digest}
            maps = {"scopes": dict(weight.scopes), "domains": dict(weight.domains)}
            said.append({**own, **{title: values for title, values in maps.items() if values}})
        return said


def text_factors(part: TextPart) -> dict[str, tuple[Tensor, Tensor]]:
    """(B, A) by path of a part of a text encoder, alpha / rank in B; paths begin with `text_model`."""
    found = {}
    for key, up in part.tensors.items():
        path, suffix, _ = key.partition(".lora_B.")
        if suffix:
            down = part.tensors[f"{path}.lora_A.weight"].detach().float()
            named = path if path.startswith("text_model.") else f"text_model.{path}"
            found[named] = (up.detach().float() * (part.alpha / part.rank), down)
    return found


def _dense(adapter: Any, read: Callable[[], Tensor]) -> Tensor:
    return adapter.delta_weight(read())


def _varies(weight: AdapterWeight) -> str:
    """What a weight depends on beside the place; empty if nothing."""
    parts = {
        "the denoising step": weight.scheduled,
        "the region": weight.mask is not None,
        "the sample": weight.samples is not None,
        "the band": weight.bands is not None,
    }
    return " and ".join(name for name, holds in parts.items() if holds)
