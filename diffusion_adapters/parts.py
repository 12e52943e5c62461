"""Adapters as parts of another on the same projection: what they are declared by, and the buffers that they share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from .adapter import FAMILIES, Adapter, AdapterConfig
from .options import Table

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Kind = tuple[str, AdapterConfig]
"""Family and options."""


def read_kind(given: Mapping[str, Any]) -> Kind:
    """Family and options of `{"family": ..., option: value, ...}`. Raises ValueError, TypeError."""
    if not isinstance(given, Mapping) or not isinstance(given.get("family"), str):
        raise TypeError(f'must be {{"family": ..., option: value, ...}}, got {given!r}')
    family = FAMILIES.canonical(given["family"])
    return family, FAMILIES[family].Config.from_mapping({name: v for name, v in given.items() if name != "family"})


def check_name(name: Any) -> None:
    """Raise TypeError for what is no text, ValueError for what cannot be a name here."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} cannot be a name here: it is {type(name).__name__}, not str")
    if not NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
        rule = "use letters, digits, - and _, up to 64, a letter or digit first, and no word of torch"
        raise ValueError(f"{name!r} cannot be a name here; {rule}")


def check_parts(parts: Mapping[str, Any]) -> Table:
    """`parts` with every option filled in. Raises ValueError, TypeError that name the part."""
    found = Table()
    for name, given in parts.items():
        try:
            check_name(name)
        except (ValueError, TypeError) as error:
            raise type(error)(f"parts: {error}") from error
        try:
            family, config = read_kind(given)
        except (ValueError, TypeError) as error:
            raise type(error)(f"parts: {name!r}: {error}") from error
        if config.domains:
            raise ValueError(f"parts: {name!r} is a {family}, which has parts itself; name those one by one")
        found[name] = {"family": family, **config.as_dict()}
    if not found:
        raise ValueError("parts is empty; name at least one")
    return found


class Parts(nn.ModuleDict):
    """Adapters by name. Of those of one family and options the first alone saves the buffers, which all have.

    A part whose tensors bring other buffers keeps its own.
    """

    def __init__(self, weight: Tensor, kinds: Mapping[str, Kind], tensors: Mapping[str, Any] | None = None) -> None:
        """`weight`: the frozen W (out, in). `tensors`: those of each part by name, if they are not new. ValueError."""
        super().__init__()
        self._firsts: dict[str, str] = {}  # name -> that whose buffers it has
        for name, (family, config) in kinds.items():
            own = None if tensors is None else tensors[name]
            same = [other for other in self if kinds[other] == (family, config) and other not in self._firsts]
            try:
                made = twin(self[same[0]]) if same else None
                if made is not None and (own is None or own.keys() == made.state_dict().keys()):
                    self._firsts[name] = same[0]
                elif own is None:
                    made = FAMILIES[family](weight, config)
                else:
                    made = FAMILIES[family].from_tensors(weight, config, own)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            self[name] = made

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)

    def own_buffers(self) -> set[str]:
        """Names of the tensors that a part may bring to keep buffers of its own, which it does without now."""
        pairs = ((name, self[name].state_dict(), self[first].state_dict()) for name, first in self._firsts.items())
        return {f"{name}.{key}" for name, own, other in pairs for key in other.keys() - own.keys()}

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)
        for name, first in self._firsts.items():
            _share_buffers(self[name], self[first])
        return self


def twin(first: Adapter) -> Adapter:
    """A new adapter with the family, options and buffers of `first`; what is read from W is copied, not read again."""
    made = type(first)(torch.empty(first.out_features, first.in_features, device="meta"), first.config)
    _share_buffers(made, first)
    for own, other in zip(made.modules(), first.modules(), strict=True):
        for name, value in other._parameters.items():
            if value is not None and own._parameters[name].is_meta:  # type: ignore[union-attr]
                own._parameters[name] = nn.Parameter(value.detach().clone())
    return made


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of the name."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _share_buffers(adapter: nn.Module, first: nn.Module) -> None:
    for own, other in zip(adapter.modules(), first.modules(), strict=True):
        own._buffers.update(other._buffers)
        own._non_persistent_buffers_set.update(own._buffers)
