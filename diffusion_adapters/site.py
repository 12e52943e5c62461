"""Where adapters act: the projections of each attention module, and the view of it with adapted projections."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .blend import Blend
from .projection import FusedProjection, Projection
from .shared import SharedInput

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


class Site:
    """One attention module of a denoiser: its path, its projections by name, and the view handed to its processor."""

    def __init__(self, path: str, attention: nn.Module, stream: Callable[[str], str], blend: Blend) -> None:
        self.path = path
        self.attention = attention
        self.stream = stream("to_q")
        self.blend = blend
        self.masked = False  # whether an adapter with a mask is in it
        self.projections: dict[str, Projection] = {}
        for name in projection_names(attention):
            parent, _, index = name.partition(".")
            owner: Any = attention.get_submodule(parent) if index else attention
            self.projections[name] = Projection(owner._modules, index or parent)
            self.projections[name].stream = stream(name)
        self.make_views()

    def make_views(self, calls: int = 1) -> None:
        """Make a view for each call of `Regions`; torch.compile cannot, so they are there before the first forward."""
        tops = dict.fromkeys(name.partition(".")[0] for name in self.projections)
        fused = [name for name, parts in FUSED_PROJECTIONS.items() if set(parts) <= set(self.projections)]
        kind: Any = type(self.attention)
        self._views = []
        for call in range(calls):
            view = object.__new__(_view_class(kind, (*tops, *fused)))
            object.__setattr__(view, "__dict__", self.attention.__dict__)
            object.__setattr__(view, "_site", self)
            object.__setattr__(view, "_call", call)
            for projection in self.projections.values():
                projection.in_call(call)
            self._views.append(view)
        self._share()

    def _share(self) -> None:
        """Let plans that read one input, as far as diffusers would fuse their projections, multiply it at once."""
        cross = getattr(self.attention, "is_cross_attention", False)
        for fused in ("to_kv" if cross else "to_qkv", "to_added_qkv"):
            found = [self.projections[name] for name in FUSED_PROJECTIONS[fused] if name in self.projections]
            # What is called no cross-attention may be one all the same: keys of another width are of another input.
            found = [projection for projection in found if projection.in_features == found[-1].in_features]
            plans = [p.plan for p in found if p.plan is not None and p.plan.low_rank]
            shared = SharedInput(plans) if len(plans) > 1 and hasattr(self.attention, "fuse_projections") else None
            for plan in plans:
                plan.shared = shared

    def resolve(self, attribute: str, call: int = 0) -> Any:
        """What the view shows as `attribute`: one projection, or a list of the parts of a `ModuleList`."""
        if attribute in self.projections:
            return self.projections[attribute].in_call(call)
        live: Any = self.attention._modules[attribute]
        if isinstance(live, (nn.ModuleList, nn.Sequential)):
            own = {f"{attribute}.{index}": part for index, part in enumerate(live)}
            return [self.projections[n].in_call(call) if n in self.projections else part for n, part in own.items()]
        return FusedProjection(live, [self.projections[p].in_call(call) for p in FUSED_PROJECTIONS[attribute]])

    def view(self, attention: nn.Module) -> nn.Module:
        """`attention` with adapted projections: live, since it shares the module's `__dict__`."""
        if attention is not self.attention:
            raise RuntimeError(
                f"the adapted processor of {self.path} was called for another attention module; "
                "call set_adapters() again after replacing processors"
            )
        return self._views[0]

    def compose(self, attention: nn.Module, run: Callable[[nn.Module], Any]) -> Any:
        """`run(view)`, once for each region that an adapter of this site has, composed to one output."""
        view, regions = self.view(attention), self.blend.regions
        if regions is None or not self.masked:
            return run(view)
        return regions.compose(self.path, self.stream, self.blend.layout, lambda call: run(self._views[call]))

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
        return {name: value for name, value in self.__dict__.items() if name != "_views"}  # they share a `__dict__`


@functools.cache
def _view_class(kind: Any, attributes: tuple[str, ...]) -> type[nn.Module]:
    def shown(attribute: str) -> property:
        def get(view: Any) -> Any:
            if view._modules.get(attribute) is None:  # absent or None, as in the module itself
                return view.__dict__[attribute] if attribute in view.__dict__ else view.__getattr__(attribute)
            try:
                return view._site.resolve(attribute, view._call)
            except (AttributeError, KeyError) as error:
                # nn.Module takes an AttributeError for "no such property" and returns the projection without adapters
                raise RuntimeError(f"{view._site.path}.{attribute}: no adapted projection: {error!r}") from error

        return property(get)

    members = {"__slots__": ("_site", "_call"), **{attribute: shown(attribute) for attribute in attributes}}
    return type(f"Adapted{kind.__name__}", (kind,), members)


def find_sites(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every attention in `denoiser` that has a processor and at least one projection."""
    for path, module in denoiser.named_modules():
        if path.partition(".")[0] in IMAGE_PROMPT_PARTS:
            continue
        if callable(getattr(module, "processor", None)) and projection_names(module):
            yield path, module
