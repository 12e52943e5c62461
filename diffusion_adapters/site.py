"""Where adapters act: the projections of each attention module, and the view of it with adapted projections."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .plan import Plan

FUSED_PROJECTIONS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""Projections that diffusers' `fuse_qkv_projections()` makes out of others, which stay where they were."""

IMAGE_PROMPT_PARTS = ("encoder_hid_proj", "image_proj")
"""Where an IP-Adapter puts its own network, which may attend too: no part of the base."""


def is_projection(module: object) -> bool:
    """Whether `module` acts as a linear projection: PEFT layers and quantized linears are no `nn.Linear`."""
    return isinstance(module, nn.Module) and isinstance(getattr(module, "in_features", None), int)


def projection_names(attention: nn.Module) -> list[str]:
    """Names of the linear projections of an attention module, like `to_q` and `to_out.0`, in module order.

    What `fuse_qkv_projections()` made is left out: the projections that it was made of are still there.
    """
    names = []
    for name, child in attention.named_children():
        parts = FUSED_PROJECTIONS.get(name, ())
        if is_projection(child) and not (
            parts and all(is_projection(getattr(attention, part, None)) for part in parts)
        ):
            names.append(name)
        elif isinstance(child, (nn.ModuleList, nn.Sequential)):
            names += [f"{name}.{index}" for index, part in enumerate(child) if is_projection(part)]
    return names


class Projection:
    """Stands for one linear projection inside a processor: the projection itself, then what its plan adds."""

    def __init__(self, modules: dict[str, nn.Module], key: str) -> None:
        self._modules = modules
        self._key = key
        self.plan: Plan | None = None
        self.called = False

    @property
    def base(self) -> Any:
        """The module that is there now: PEFT and quantization replace it."""
        return self._modules[self._key]

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            self.called = True
        if self.plan is None:
            return self.base(x, *args, **kwargs)
        return self.plan(self.base, x, *args, **kwargs)


class FusedProjection:
    """Stands for `to_qkv` and its like: evaluates the parts one by one while one of them has an adapter at work."""

    def __init__(self, base: Any, parts: list[Projection]) -> None:
        self.base = base
        self.parts = parts

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if all(part.plan is None for part in self.parts):
            return self.base(x, *args, **kwargs)
        return torch.cat([part(x, *args, **kwargs) for part in self.parts], dim=-1)


class Site:
    """One attention module of a denoiser: its path, its projections by name, and the view handed to its processor."""

    def __init__(self, path: str, attention: nn.Module) -> None:
        self.path = path
        self.attention = attention
        self.projections: dict[str, Projection] = {}
        for name in projection_names(attention):
            parent, _, index = name.partition(".")
            owner: Any = attention.get_submodule(parent) if index else attention
            self.projections[name] = Projection(owner._modules, index or parent)
        self.make_view()

    def make_view(self) -> None:
        """Make the view; torch.compile cannot, so it is there before the first forward."""
        tops = dict.fromkeys(name.partition(".")[0] for name in self.projections)
        fused = [name for name, parts in FUSED_PROJECTIONS.items() if set(parts) <= set(self.projections)]
        kind: Any = type(self.attention)
        view = object.__new__(_view_class(kind, (*tops, *fused)))
        object.__setattr__(view, "__dict__", self.attention.__dict__)
        object.__setattr__(view, "_site", self)
        self._view = view

    def resolve(self, attribute: str) -> Any:
        """What the view shows as `attribute`: one projection, or a list of the parts of a `ModuleList`."""
        if attribute in self.projections:
            return self.projections[attribute]
        live: Any = self.attention._modules[attribute]
        if isinstance(live, (nn.ModuleList, nn.Sequential)):
            return [self.projections.get(f"{attribute}.{index}", part) for index, part in enumerate(live)]
        return FusedProjection(live, [self.projections[part] for part in FUSED_PROJECTIONS[attribute]])

    def view(self, attention: nn.Module) -> nn.Module:
        """`attention` with adapted projections: live, since it shares the module's `__dict__`."""
        if attention is not self.attention:
            raise RuntimeError(
                f"the adapted processor of {self.path} was called for another attention module; "
                "call set_adapters() again after replacing processors"
            )
        return self._view

    def check_coverage(self) -> None:
        """Raise RuntimeError if a trained adapter sits on a projection that the attention evaluates by itself.

        An attention that did not run at all is no error: a model may have parts that an input does not need.
        """
        planned = {name: p.called for name, p in self.projections.items() if p.plan is not None and p.plan.trains}
        missed = [name for name, called in planned.items() if not called]
        if missed and len(missed) < len(planned):
            used = " ".join(name for name in planned if planned[name])
            raise RuntimeError(
                f"{self.path}: the model evaluates {', '.join(missed)} outside its attention processor, where an "
                f"adapter has no effect; leave it out by target_modules {used}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_view"}  # it shares a `__dict__`


@functools.cache
def _view_class(kind: Any, attributes: tuple[str, ...]) -> type[nn.Module]:
    def shown(attribute: str) -> property:
        def get(view: Any) -> Any:
            if view._modules.get(attribute) is None:  # absent or None, as in the module itself
                return view.__dict__[attribute] if attribute in view.__dict__ else view.__getattr__(attribute)
            try:
                return view._site.resolve(attribute)
            except (AttributeError, KeyError) as error:
                # nn.Module takes an AttributeError for "no such property" and returns the projection without adapters
                raise RuntimeError(f"{view._site.path}.{attribute}: no adapted projection: {error!r}") from error

        return property(get)

    members = {"__slots__": ("_site",), **{attribute: shown(attribute) for attribute in attributes}}
    return type(f"Adapted{kind.__name__}", (kind,), members)


def find_sites(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every attention in `denoiser` that has a processor and at least one projection."""
    for path, module in denoiser.named_modules():
        if path.partition(".")[0] in IMAGE_PROMPT_PARTS:
            continue
        if callable(getattr(module, "processor", None)) and projection_names(module):
            yield path, module
