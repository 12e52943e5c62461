"""Which layers of a model a file's name means: by the model's own paths, the original checkpoint's, or underscores."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from .originals import ORIGINALS

Rows = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """A layer, and the runs of rows of the named one that it is; None if it is all of it."""

    path: str
    rows: Rows | None = None


class Names:
    """The layers of one model by every name that files have for them."""

    def __init__(self, model: nn.Module) -> None:
        modules = {path: module for path, module in model.named_modules() if path}
        known: dict[str, tuple[Place, ...]] = {path: (Place(path),) for path in modules}
        known |= {name: (Place(path),) for path in modules for name in _of_text_encoder(path, model)}
        for name, parts in ORIGINALS.get(type(model).__name__, lambda model: {})(model).items():
            known[name] = _parted(parts, modules)
        self._known = known
        self._flat: dict[str, tuple[Place, ...] | None] = {}
        for name, places in known.items():
            flat = name.replace(".", "_")
            self._flat[flat] = places if self._flat.get(flat, places) == places else None

    def find(self, name: str) -> tuple[Place, ...] | None:
        """The layers that together are the named one, None if there is no such, or more than one."""
        return self._known.get(name) or self._flat.get(name)


def _of_text_encoder(path: str, model: Any) -> list[str]:
    """Files speak of `text_model.encoder`, whether this version of transformers has the outer part or not."""
    if "Text" not in type(model).__name__:
        return []
    return [path.removeprefix("text_model.") if path.startswith("text_model.") else f"text_model.{path}"]


def _parted(parts: tuple[str, ...], modules: dict[str, nn.Module]) -> tuple[Place, ...]:
    """Places of the layers that an original one was cut into. A part that ends in `~` had its halves exchanged."""
    places, start = [], 0
    for part in parts:
        path = part.removesuffix("~")
        module: Any = modules[path]
        size: int = getattr(module, "out_features", None) or getattr(module, "out_channels", 0) or 0
        middle, stop = start + size // 2, start + size
        if part.endswith("~"):
            places.append(Place(path, ((middle, stop), (start, middle))))
        else:
            places.append(Place(path, ((start, stop),) if len(parts) > 1 else None))
        start = stop
    return tuple(places)
