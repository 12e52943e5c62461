"""Turn a file of another program into adapters of our families, for the models at hand; nothing is attached."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, AdapterInfo, ForeignLayer
from ..build import Part
from ..outside import is_convolution, layer_shape
from ..plan import inner_width
from ..site import is_projection
from ..text import TextPart
from .dialect import DENOISER
from .foreign import ForeignFile, family_of, missing_names
from .labels import training_of, trigger_of
from .names import Names, Place


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A layer that cannot be applied: component and name, why, and how many numbers of the file it has.

    `kind`: `missing` if a tensor is not there, `misshapen` if one does not fit, `unused` if there is no use for it.
    """

    component: str
    layer: str
    reason: str
    numbers: int
    kind: str = "unused"

    def __str__(self) -> str:
        return f"{self.component}{'.' if self.component else ''}{self.layer}: {self.reason}"


class _UnfitError(ValueError):
    """Why a layer cannot be applied, and the kind of its refusal."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclasses.dataclass
class Translation:
    """Parts by component and path; LoRAs of text encoders by component; what could not be used, and was left out."""

    parts: dict[str, dict[str, Part]] = dataclasses.field(default_factory=dict)
    text: dict[str, TextPart] = dataclasses.field(default_factory=dict)
    refused: list[Refusal] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    numbers: int = 0

    @property
    def refused_share(self) -> float:
        """The part of the file's numbers that cannot be applied, in [0, 1]."""
        return sum(refusal.numbers for refusal in self.refused) / max(self.numbers, 1)

    def check(self, made_for: tuple[str, str] | None = None) -> None:
        """Raise ValueError if there is anything that cannot be applied, with its share of the file.

        `made_for`: the base that the file seems to be for, and what tells so.
        """
        if self.refused:
            count, first = len(self.refused), self.refused[0]
            more = f", and {count - 1} more" if count > 1 else ""
            if not self.parts and not self.text:
                base = f"; it seems to be for {made_for[0]}, as {made_for[1]}" if made_for else ""
                raise ValueError(f"none of its layers can be applied here: {first}{more}{base}")
            raise ValueError(
                f"{count} of its layers, {self.refused_share:.1%} of its numbers, cannot be applied here: "
                f"{first}{more}; {self._remedy()} loads the rest"
            )
        if not self.parts:
            raise ValueError(f"it changes {' and '.join(self.text) or 'nothing'}, and no layer of a denoiser")

    def _remedy(self) -> str:
        whole = {refusal.component for refusal in self.refused} - {"", *self.parts, *self.text}
        names = [r.component if r.component in whole else r.layer for r in self.refused]
        names = list(dict.fromkeys(names))
        return f"leave_out={names[:3]}" + (f" and {len(names) - 3} names more" if len(names) > 3 else "")

    def info(self, metadata: Mapping[str, str]) -> AdapterInfo:
        """What is known of the adapter: its most frequent family and options, and what the header tells."""
        kinds = Counter((part.family, part.config) for own in self.parts.values() for part in own.values())
        (family, config), _ = kinds.most_common(1)[0]
        targets = tuple(path for own in self.parts.values() for path in own)
        told = {"trigger": trigger_of(metadata), "training": training_of(metadata)}
        return AdapterInfo(family=family, config=config, target_modules=targets, **told)  # type: ignore[arg-type]


def translate(
    file: ForeignFile,
    denoisers: Mapping[str, nn.Module],
    encoders: Mapping[str, nn.Module],
    leave_out: Sequence[str] = (),
) -> Translation:
    """What `file` changes in the denoisers and text encoders, by component. What it cannot change is in `refused`.

    `leave_out`: components, or layers by whole segments of their path, to do without.
    """
    found = Translation(numbers=file.numbers)
    models = {**denoisers, **encoders}
    names = {component: Names(model) for component, model in models.items()}
    low_rank: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}

    def left_out(component: str, layer: str) -> bool:
        hit = any(f".{name}." in f".{component}.{layer}." for name in leave_out)
        found.left_out.extend([f"{component}.{layer}"] if hit else [])
        return hit

    for key, value in file.strangers.items():
        if not left_out("", key):
            found.refused.append(Refusal("", key, "it is no tensor of a layer", value.numel()))
    for (component, module), tensors in file.layers.items():
        component = next(iter(denoisers)) if component == DENOISER else component
        places = names[component].find(module) if component in names else None
        layer = module if places is None else places[0].path
        if left_out(component, layer):
            continue
        try:
            if component not in names:
                raise ValueError(f"this model has no {component} that can carry an adapter")
            if places is None:
                raise ValueError("there is no such layer")
            own = _parts(models[component], places, tensors, file.settings(component, module))
            if component in encoders:
                low_rank.setdefault(component, {}).update(_factors(models[component], own))
                continue
            there = found.parts.setdefault(component, {})
            if own.keys() & there.keys():
                raise ValueError("another layer of the file is the same one")
            there.update(own)
        except ValueError as error:
            numbers = sum(value.numel() for value in tensors.values())
            found.refused.append(Refusal(component, layer, str(error), numbers, getattr(error, "kind", "unused")))
    found.parts = {component: own for component, own in found.parts.items() if own}
    found.text = {component: _text_part(factors) for component, factors in low_rank.items()}
    return found


def _parts(
    model: nn.Module, places: Sequence[Place], tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Part]:
    """What there is to be on each of `places`. Raises ValueError for what is of no family or does not fit."""
    tensors = {name: value for name, value in tensors.items() if not (name == "diff_b" and not value.any())}
    family = family_of(set(tensors))
    if family is None:
        lacking = missing_names(set(tensors))
        if lacking:
            raise _UnfitError(
                f"it has {', '.join(sorted(set(tensors) - {'alpha'}))}, but no {', '.join(sorted(lacking))}", "missing"
            )
        raise ValueError(f"its tensors {', '.join(sorted(tensors))} are of no family known here")
    found = {}
    for place in places:
        module = model.get_submodule(place.path)
        if not is_projection(module) and not is_convolution(module):
            raise ValueError(f"a {type(module).__name__} can carry no adapter, only a linear or a Conv2d")
        foreign = ForeignLayer(tensors, layer_shape(module), place.rows, settings)
        try:
            config, own = FAMILIES[family].from_foreign(foreign)
        except (
            ValueError,
            RuntimeError,
            IndexError,
            TypeError,
            ArithmeticError,
        ) as error:  # of torch, of shapes
            raise _UnfitError(f"weight {foreign.shape}: {str(error).splitlines()[0]}", "misshapen") from error
        found[place.path] = Part(family, config, own)
    return found


def _factors(model: nn.Module, parts: Mapping[str, Part]) -> dict[str, tuple[Tensor, Tensor]]:
    """(B, A) by path, of what text encoders can carry: what is low rank whatever the weight."""
    found = {}
    for path, part in parts.items():
        weight = torch.empty(layer_shape(model.get_submodule(path)), device="meta")
        kind = FAMILIES[part.family]
        adapter = None if kind.reads(part.config) else kind.from_tensors(weight, part.config, part.tensors or {})
        if adapter is None or adapter.transforms_input or adapter.adds_output or inner_width(adapter) is None:
            raise ValueError(f"text encoders carry LoRA alone, not {part.family}")
        with torch.no_grad():
            found[path] = adapter.low_rank()
    return found  # type: ignore[return-value]


def _text_part(factors: Mapping[str, tuple[Tensor, Tensor]]) -> TextPart:
    """One LoRA of all layers: of one rank, smaller ones widened by zeros, and of scale 1."""
    rank = max(len(down) for _, down in factors.values())
    tensors = {}
    for path, (up, down) in factors.items():
        short = rank - len(down)
        tensors[f"{path}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, short))
        tensors[f"{path}.lora_B.weight"] = torch.nn.functional.pad(up, (0, short))
    return TextPart(rank, float(rank), tuple(factors), tensors)
