"""All adapters of one denoiser: their parameters, their weights, and the wiring into its attention processors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter, AdapterInfo
from .blend import Blend
from .dials import Shares, members, shares, spread_weights
from .hooks import wire
from .layout import stream
from .outside import Outside, find_outside
from .plan import Plan
from .processor import is_wrapped, set_processor, unwrap, wrap
from .projection import Projection
from .registry import nearest
from .site import Site, find_sites
from .weight import AdapterWeight, as_weight


class AdapterSet(nn.Module):
    """The adapters of one denoiser, as a module of their parameters beside it: its `state_dict` does not change."""

    denoiser: nn.Module

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.__dict__["denoiser"] = denoiser  # not a child: its parameters are not ours
        self.adapters = nn.ModuleDict()
        self.infos: dict[str, AdapterInfo] = {}
        self.shares: dict[str, Shares] = {}
        self.weights: dict[str, float | AdapterWeight] = {}
        self.enabled = True
        self.checked = False
        self.compiled = False  # whether a compiled forward reads the plans: then they stay as they are
        self.fused: dict[str, Tensor] = {}  # path -> the weight as it was before fusing
        self.outside: dict[str, Outside] = {}  # what carries an adapter and is no attention projection
        self.component = "unet" if "UNet" in type(denoiser).__name__ else "transformer"
        self.blend = Blend(denoiser)
        self._planned: Any = None  # what the plans were made for
        self.room: Any = None  # the slots that are kept
        self.sites = {
            path: Site(path, attention, functools.partial(stream, denoiser, attention), self.blend)
            for path, attention in find_sites(denoiser)
        }
        if not self.sites:
            raise ValueError(f"{type(denoiser).__name__} has no attention processors to put adapters in")
        self._projections = {f"{s.path}.{name}": p for s in self.sites.values() for name, p in s.projections.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for site in self.sites.values():
            site.make_views(self.blend.calls)

    def projections(self) -> dict[str, Projection]:
        """Every attention projection, by its path in the denoiser."""
        return dict(self._projections)

    def places(self) -> dict[str, Projection]:
        """Everything that can carry an adapter now: the projections, and layers outside attention that do."""
        return {**self._projections, **self.outside}

    def insert(
        self,
        name: str,
        adapters: Mapping[str, Adapter],
        info: AdapterInfo,
        weight: float | AdapterWeight = 1.0,
        pipeline: Any = None,
    ) -> None:
        """Attach `adapters` (by path) as `name` and make them active. Raises ValueError if the name is taken."""
        self.check_free(name)
        as_weight(weight, name)
        self.outside |= find_outside(self.denoiser, [path for path in adapters if path not in self.places()])
        order = {path: number for number, path in enumerate(self.places())}  # that of parameters, for an optimizer
        keyed = {path.replace(".", "/"): adapters[path] for path in sorted(adapters, key=order.__getitem__)}
        self.adapters[_key(name)] = nn.ModuleDict(keyed)
        self.infos[name] = info
        self.shares[name] = shares(adapters)
        self._planned = None
        try:
            self.set_weights({**self.weights, name: weight}, pipeline=pipeline)
        except ValueError:  # a weight that depends on the step, without a pipeline
            del self.adapters[_key(name)], self.infos[name], self.shares[name]
            raise

    def remove(self, name: str) -> None:
        """Delete the adapter `name`. Without adapters the denoiser is as it was."""
        self.check(name)
        self._refuse_while_fused("delete adapters")
        del self.adapters[_key(name)], self.infos[name], self.shares[name]
        self._planned = None
        self.set_weights({n: w for n, w in self.weights.items() if n != name}, self.enabled or not self.infos)

    def of(self, name: str) -> dict[str, Adapter]:
        """The adapters of `name` by path."""
        self.check(name)
        return {key.replace("/", "."): adapter for key, adapter in self.adapters[_key(name)].items()}  # type: ignore[operator]

    def everyone(self) -> list[Adapter]:
        """The adapter of each name at each place; `modules()` has the parts of hybrids too."""
        return [adapter for name in self.infos for adapter in self.of(name).values()]

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

    def set_weights(
        self, weights: Mapping[str, float | AdapterWeight], enabled: bool = True, pipeline: Any = None
    ) -> None:
        """Make exactly the adapters of `weights` active, each times its weight.

        `pipeline`: whose scheduler tells the step, for weights that depend on it. Raises ValueError, and then nothing
        has changed.
        """
        self.check(*weights)
        self._refuse_while_fused("change adapter weights")
        taken = {name: as_weight(weight, name) for name, weight in weights.items()}
        self.plan(taken if enabled else {}, pipeline)
        self.weights, self.enabled = dict(weights), enabled

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

    def plan(self, weights: Mapping[str, AdapterWeight] | None = None, owner: Any = None, anew: bool = False) -> None:
        """Give each projection its plan for `weights`, and wrap or unwrap the processors accordingly.

        Where the same adapters are active in the same way, other numbers are all that is taken, unless `anew`.
        """
        if weights is None:
            weights = {name: as_weight(given, name) for name, given in self.weights.items() if self.enabled}
        # A compiled forward keeps an adapter of weight 0: without it, it would be compiled again.
        spread = spread_weights(self, weights).items()
        active = {n: w for n, w in spread if (w.value != 0 or self.compiled) and not self.fused}
        if self.room is not None:
            self.room.check(self, active, members(self, active))
        device = next((p.device for p in self.denoiser.parameters() if not p.is_meta), torch.device("cpu"))
        self.blend.take(active, device, owner or self.blend.owner)
        masked = {name for name, w in active.items() if w.mask is not None}
        scopes = [(name, tuple(w.scopes.items())) for name, w in active.items()]
        planned = (scopes, self.blend.calls, masked, {name: len(gains) for name, gains in self.blend.bands.items()})
        places = self.places()
        same = planned == self._planned and not anew
        for projection in places.values():
            projection.called = False
            if same and (self.compiled or self.room) and projection.plan is not None:
                projection.plan.update()
        if same:
            return
        self._planned = None
        found = members(self, active)
        for path, projection in places.items():
            own = found.get(path, [])
            if projection.plan is None or not projection.plan.reweigh(own):
                projection.plan = Plan(own, self.blend, path, projection.stream) if own else None
        wire(self, masked)
        self.checked = False
        self._planned = planned

    def _refuse_while_fused(self, action: str) -> None:
        if self.fused:
            raise RuntimeError(
                f"cannot {action} while adapters are fused into the weights; call unfuse_adapters() first"
            )


def _key(name: str) -> str:
    return f":{name}"  # an adapter may be called `train` or `half`, which are attributes of every module
