"""One projection and an adapter on it, with each configuration to try; what its docstring says it trains."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_adapters.adapter import FAMILIES, Adapter
from diffusion_adapters.blend import Blend
from diffusion_adapters.plan import Member, Plan
from diffusion_adapters.weight import AdapterWeight

IN, OUT, TOKENS = 64, 96, 3
"""Sizes that tell a transpose, that any family can halve and factor, and tokens too few to hide an (out, in) tensor."""
Family = type[Adapter]
Overrides = dict[str, Any]


def plan_of(members: list[tuple[Adapter, float]]) -> Plan:
    """The plan of adapters, each with its weight."""
    blend = Blend(nn.Identity())
    blend.take({str(i): AdapterWeight(weight) for i, (_, weight) in enumerate(members)}, torch.device("cpu"))
    return Plan([Member(adapter, str(i)) for i, (adapter, _) in enumerate(members)], blend)


def cases() -> Iterator[tuple[str, Overrides]]:
    """Each family, with a rank that is not its alpha, and with each other option at each value next to its default."""
    for name in FAMILIES:
        config = FAMILIES[name].Config
        base = small(name)
        yield name, base
        for field in dataclasses.fields(config):
            for value in neighbours(field, config.kinds()[field.name][0]) if field.name not in base else ():
                yield name, {**base, field.name: value}


def neighbours(field: dataclasses.Field[Any], kind: type) -> list[Any]:
    """Values of an option to try besides its default."""
    bounds, choices = field.metadata["bounds"], field.metadata["choices"]
    if choices is not None:
        found = list(choices)
    elif kind is bool:
        found = [not field.default]
    elif kind is int:
        found = [bounds.get("ge", field.default), field.default + 1]
        found = [value for value in found if value <= bounds.get("le", math.inf)]
    elif kind is float:
        found = [0.5 * (field.default + 1)]
    elif isinstance(field.default, Mapping):  # of parts: the last of each family, and all of that family
        own = [{"family": name, **small(name)} for name in FAMILIES if not FAMILIES[name].Config().domains]
        last = list(field.default)[-1]
        found = [{**field.default, last: part} for part in own]
        found += [dict.fromkeys(field.default, part) for part in own]
    else:
        found = []
    return [value for value in found if value != field.default]


def small(family: str) -> Overrides:
    """A rank that is not the alpha, where there are such options."""
    return {k: v for k, v in {"rank": 2, "alpha": 6.0}.items() if k in FAMILIES[family].Config.kinds()}


def projection(dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(IN, OUT).requires_grad_(False)
    return linear.to(dtype)


def make(family: Family, overrides: Overrides, linear: nn.Linear, stirred: bool = True) -> Adapter:
    adapter = family(linear.weight.detach().float(), family.Config(**overrides))
    if stirred:
        stir(adapter)
    return adapter


@torch.no_grad()
def stir(adapter: Adapter) -> None:
    """Move every value away from the start, as training would, and far enough to be seen in bf16."""
    for value in adapter.parameters():
        value.add_(torch.randn(value.shape))


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the size of what is expected, so that a small effect is not compared with a large base."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    assert error < tolerance, f"relative error {error:.2g}"


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation makes, other than views of `known` ones."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.size, self.maker = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.known:
                self.size, self.maker = max((self.size, self.maker), (value.numel(), f"{func} {tuple(value.shape)}"))
        return made


def declared_count(adapter: Adapter) -> int:
    """Evaluate `Trains FORMULA values per projection[, or FORMULA with OPTION[=VALUE]]…` of the family's docstring.

    A formula is written as in a paper: a product by standing side by side, ², ^, and Σ of what is an attribute.
    """
    text = sys.modules[type(adapter).__module__].__doc__ or ""
    sentence = re.search(r"^Trains (.+?) values per projection(?:, or\s+(.+?))?\.$", text, re.M | re.S)
    assert sentence, "the docstring has no line 'Trains … values per projection.'"
    formula = sentence[1]
    for alternative in re.split(r",?\s+or\s+", sentence[2] or ""):
        condition = re.fullmatch(r"(.+?)\s+with\s+(\w+)(?:=(\w+))?", alternative.strip(), re.S)
        if condition:
            value = getattr(adapter.config, condition[2])
            if value == condition[3] if condition[3] else value:
                formula = condition[1]
    return evaluate(formula, adapter)


def evaluate(formula: str, adapter: Adapter) -> int:
    sizes = {name: value for name, value in vars(adapter).items() if type(value) is int}
    names = {**sizes, "in": adapter.in_features, "out": adapter.out_features, **adapter.config.as_dict()}
    expression, ended = "", False  # ended: the last token ends an operand, so that another one multiplies it
    tokens = re.findall(r"Σ [^\W²]+²?|[^\W²]+|[-+*/()²^]", formula)
    for token in tokens:
        starts = token not in "-+*/)²^"
        expression += "*" if starts and ended else ""
        if token.startswith("Σ"):
            values = getattr(adapter, token[2:].removesuffix("²"))
            expression += str(sum(value**2 if token.endswith("²") else value for value in values))
        else:
            expression += {"²": "**2", "^": "**"}.get(token, str(names.get(token, token)))
        ended = token not in "-+*/(^"
    count = eval(expression, {"__builtins__": {}})
    assert count == int(count), f"{formula} is {count}"
    return int(count)
