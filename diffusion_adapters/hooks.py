"""What happens around a forward of a denoiser that has adapters, and how its AdapterSet is found again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from .processor import is_wrapped, set_processor, unwrap


class Before:
    """Hook before a forward of the denoiser: wraps what diffusers put in place of our processors since the last one."""

    def __init__(self, adapter_set: Any) -> None:
        self.adapter_set = adapter_set

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.heal()
        self.adapter_set.blend.before(args, kwargs)
        if torch.compiler.is_compiling():
            self.compiled()
            # torch.compile has run heal() while tracing, and traces the forward apart from this hook. Looking at the
            # processors makes it come back here when one of them is replaced.
            for site in self.adapter_set.sites.values():
                is_wrapped(site.attention.processor)

    def heal(self) -> bool:
        self.adapter_set.heal()
        return True

    def compiled(self) -> bool:
        self.adapter_set.compiled = True
        return True

    # torch._dynamo.assume_constant_result, unimported
    heal._dynamo_marked_constant = compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


class After(Before):
    """Hook after the first forward of a training: refuses adapters that no processor has run."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not self.adapter_set.checked:
            self.adapter_set.check_coverage()


def wire(adapter_set: Any, masked: Collection[str]) -> None:
    """Bring hooks and processors of a denoiser in line with the plans. `masked`: the adapters that act in a region."""
    hook(adapter_set)
    for layer in adapter_set.outside.values():
        layer.wire(masked)
    for site in adapter_set.sites.values():
        plans = [projection.plan for projection in site.projections.values() if projection.plan is not None]
        site.masked = any(member.name in masked for plan in plans for member in plan.members)
        site.make_views(adapter_set.blend.calls)
        if not plans and is_wrapped(site.attention.processor):
            set_processor(site.attention, unwrap(site.attention.processor))
    adapter_set.heal()


def hook(adapter_set: Any) -> None:
    """Register the hooks of an AdapterSet on its denoiser once, or take them away with the last adapter."""
    denoiser = adapter_set.denoiser
    for hooks in (denoiser._forward_pre_hooks, denoiser._forward_hooks):
        for key in [key for key, found in hooks.items() if isinstance(found, Before)]:
            del hooks[key]
            denoiser._forward_pre_hooks_with_kwargs.pop(key, None)
    if adapter_set.infos or adapter_set.room:
        denoiser.register_forward_pre_hook(Before(adapter_set), prepend=True, with_kwargs=True)
        denoiser.register_forward_hook(After(adapter_set))


def find_adapter_set(denoiser: nn.Module) -> Any:
    """The AdapterSet of a denoiser; a copy of a denoiser has a copy of its own."""
    hooks = denoiser._forward_pre_hooks.values()
    return next((hook.adapter_set for hook in hooks if isinstance(hook, Before)), None)
