"""All adapters of one denoiser: their parameters, their weights, and the wiring into its attention processors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter, AdapterInfo
from .outside import Outside, find_outside
from .plan import Plan
from .processor import is_wrapped, set_processor, unwrap, wrap
from .registry import nearest
from .site import Projection, Site, find_sites


class _Before:
    """Hook before a forward of the denoiser: wraps what diffusers put in place of our processors since the last one."""

    def __init__(self, adapter_set: AdapterSet) -> None:
        self.adapter_set = adapter_set

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.heal()
        if torch.compiler.is_compiling():
            # torch.compile has run heal() while tracing, and traces the forward apart from this hook. Looking at the
            # processors makes it come back here when one of them is replaced.
            for site in self.adapter_set.sites.values():
                is_wrapped(site.attention.processor)

    def heal(self) -> bool:
        self.adapter_set.heal()
        return True

    heal._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch._dynamo.assume_constant_result, unimported


class _After(_Before):
    """Hook after the first forward of a training: refuses adapters that no processor has run."""

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not self.adapter_set.checked:
            self.adapter_set.check_coverage()


class AdapterSet(nn.Module):
    """The adapters of one denoiser, as a module of their parameters beside it: its `state_dict` does not change."""

    denoiser: nn.Module

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.__dict__["denoiser"] = denoiser  # not a child: its parameters are not ours
        self.adapters = nn.ModuleDict()
        self.infos: dict[str, AdapterInfo] = {}
        self.weights: dict[str, float] = {}
        self.enabled = True
        self.checked = False
        self.fused: dict[str, Tensor] = {}  # path -> the weight as it was before fusing
        self.outside: dict[str, Outside] = {}  # what carries an adapter and is no attention projection
        self.sites = {path: Site(path, attention) for path, attention in find_sites(denoiser)}
        if not self.sites:
            raise ValueError(f"{type(denoiser).__name__} has no attention processors to put adapters in")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for site in self.sites.values():
            site.make_view()

    def projections(self) -> dict[str, Projection]:
        """Every attention projection, by its path in the denoiser."""
        return {f"{site.path}.{name}": p for site in self.sites.values() for name, p in site.projections.items()}

    def places(self) -> dict[str, Projection]:
        """Everything that can carry an adapter now: the projections, and layers outside attention that do."""
        return {**self.projections(), **self.outside}

    def insert(self, name: str, adapters: Mapping[str, Adapter], info: AdapterInfo, weight: float = 1.0) -> None:
        """Attach `adapters` (by path) as `name` and make them active. Raises ValueError if the name is taken."""
        self.check_free(name)
        check_weights({name: weight})
        self.outside |= find_outside(self.denoiser, [path for path in adapters if path not in self.places()])
        keyed = {path.replace(".", "/"): adapter for path, adapter in adapters.items()}
        self.adapters[_key(name)] = nn.ModuleDict(keyed)
        self.infos[name] = info
        self.set_weights({**self.weights, name: weight})

    def remove(self, name: str) -> None:
        """Delete the adapter `name`. Without adapters the denoiser is as it was."""
        self.check(name)
        self._refuse_while_fused("delete adapters")
        del self.adapters[_key(name)], self.infos[name]
        self.set_weights({other: weight for other, weight in self.weights.items() if other != name})

    def of(self, name: str) -> dict[str, Adapter]:
        """The adapters of `name` by path."""
        self.check(name)
        return {key.replace("/", "."): adapter for key, adapter in self.adapters[_key(name)].items()}  # type: ignore[operator]

    def check_free(self, name: str) -> None:
        """Raise ValueError if `name` is taken or cannot be a name, RuntimeError while adapters are fused."""
        self._refuse_while_fused("add adapters")
        if name in self.infos:
            raise ValueError(f"adapter name {name!r} is already in use; delete it first or choose another name")
        if not name or "." in name or "/" in name:
            raise ValueError(f"adapter name {name!r} must be non-empty, without '.' and '/'")

    def check(self, *names: str) -> None:
        """Raise ValueError for a name that no adapter has."""
        for name in names:
            if name not in self.infos:
                raise ValueError(f"unknown adapter {name!r}, {nearest(name, self.infos)}")

    def set_weights(self, weights: Mapping[str, float], enabled: bool = True) -> None:
        """Make exactly the adapters of `weights` active, each times its weight."""
        self.check(*weights)
        self._refuse_while_fused("change adapter weights")
        check_weights(weights)
        self.weights = {name: float(weight) for name, weight in weights.items()}
        self.enabled = enabled
        self.plan()

    @contextlib.contextmanager
    def bypassed(self) -> Iterator[None]:
        """Inside, a forward is that of the base alone. Nothing is planned anew, and `coverage` does not count it."""
        kept = [(projection, projection.plan, projection.called) for projection in self.places().values()]
        try:
            for projection, _, _ in kept:
                projection.plan = None
            yield
        finally:
            for projection, plan, called in kept:
                projection.plan, projection.called = plan, called

    def refresh(self) -> None:
        """Take up values that were changed by a write to `.data`; other changes are noticed."""
        for projection in self.places().values():
            if projection.plan is not None:
                projection.plan.refresh()

    def heal(self) -> None:
        """Wrap every processor that is not ours, where there is an adapter."""
        for site in self.sites.values():
            processor: Any = site.attention.processor
            if is_wrapped(processor) and processor._site is site:
                continue
            if any(projection.plan is not None for projection in site.projections.values()):
                set_processor(site.attention, wrap(unwrap(processor) if is_wrapped(processor) else processor, site))

    def coverage(self) -> dict[str, bool]:
        """Path of each projection with an active adapter -> whether a forward has used it since it was planned."""
        planned = {path: p for path, p in self.places().items() if p.plan is not None}
        return {path: projection.called for path, projection in planned.items()}

    def check_coverage(self) -> None:
        """Raise RuntimeError if a trained adapter sits on a projection that its attention evaluates by itself."""
        self.checked = True
        for site in self.sites.values():
            site.check_coverage()

    def plan(self) -> None:
        """Give each projection its plan, and wrap or unwrap the processors accordingly."""
        active = {
            name: weight for name, weight in self.weights.items() if self.enabled and weight != 0 and not self.fused
        }
        by_path: dict[str, list[tuple[Adapter, float]]] = {}
        for name, weight in active.items():
            for path, adapter in self.of(name).items():
                by_path.setdefault(path, []).append((adapter, weight))
        for path, projection in self.places().items():
            members = by_path.get(path)
            if members is None or projection.plan is None or not projection.plan.reweigh(members):
                projection.plan = Plan(members) if members else None
            projection.called = False
        self._hook()
        for layer in self.outside.values():
            layer.wire()
        for site in self.sites.values():
            idle = all(projection.plan is None for projection in site.projections.values())
            if idle and is_wrapped(site.attention.processor):
                set_processor(site.attention, unwrap(site.attention.processor))
        self.heal()

    def _hook(self) -> None:
        """Register our hooks on the denoiser once, or take them away with the last adapter."""
        for hooks in (self.denoiser._forward_pre_hooks, self.denoiser._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Before)]:
                del hooks[key]
        if self.infos:
            self.denoiser.register_forward_pre_hook(_Before(self), prepend=True)
            self.denoiser.register_forward_hook(_After(self))
        self.checked = False

    def _refuse_while_fused(self, action: str) -> None:
        if self.fused:
            raise RuntimeError(
                f"cannot {action} while adapters are fused into the weights; call unfuse_adapters() first"
            )


def _key(name: str) -> str:
    return f":{name}"  # an adapter may be called `train` or `half`, which are attributes of every module


def check_weights(weights: Mapping[str, Any]) -> None:
    """Raise ValueError for a weight that is no finite number."""
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"the weight of adapter {name!r} must be a finite number, got {weight!r}")


def find_adapter_set(denoiser: nn.Module) -> AdapterSet | None:
    """The AdapterSet of a denoiser; a copy of a denoiser has a copy of its own."""
    hooks = denoiser._forward_pre_hooks.values()
    return next((hook.adapter_set for hook in hooks if isinstance(hook, _Before)), None)
