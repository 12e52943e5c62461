"""What one training step takes: seconds, launches, bytes kept for the backward pass, bytes at its peak."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from diffusion_adapters.hooks import find_adapter_set
from train.benchmarks.ops import OpCounter


class Step:
    """A training step of a UNet whose adapters `groups` trains: forward, backward, AdamW."""

    def __init__(self, unet: Any, groups: list[dict[str, Any]], inputs: tuple[tuple[Tensor, ...], dict[str, Any]]):
        self.unet, self.groups = unet, groups
        self.arguments, self.extra = inputs
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.like = self.arguments[0]

    @property
    def values(self) -> list[Tensor]:
        """What is trained."""
        return [value for group in self.groups for value in group["params"]]

    def forward(self) -> Tensor:
        """The loss."""
        with torch.autocast(self.like.device.type, self.like.dtype, enabled=self.like.dtype != torch.float32):
            predicted = self.unet(*self.arguments, **self.extra, return_dict=False)[0]
        return (predicted.float() - self.like.float()).square().mean()

    def __call__(self) -> None:
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def seconds(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """(processor time of this process, wall time) of one step; on a GPU both include waiting for it."""
    gc.collect()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    wall, processor = time.perf_counter(), time.process_time()
    step()
    wait()
    return time.process_time() - processor, time.perf_counter() - wall


def launches(step: Callable[[], None]) -> int:
    """Operations that reach the dispatcher in one step, views apart."""
    with OpCounter() as counter:
        step()
    return counter.total


def saved_bytes(loss: Callable[[], Tensor], own: Iterable[Tensor]) -> int:
    """Bytes that a forward keeps for its backward, each storage once, without `own`, those of model and adapters."""
    known = {_key(value) for value in own}
    saved: dict[int, Tensor] = {}  # holding them, so that no address is used twice

    def pack(value: Tensor) -> Tensor:
        if _key(value) not in known:
            saved.setdefault(_key(value), value)
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        kept = loss()
    del kept
    return sum(value.untyped_storage().nbytes() for value in saved.values())


def peak_bytes(step: Step, frozen: Iterable[Tensor]) -> int:
    """Bytes at the highest point of a step: adapters, optimizer, activations; without the base's own, `frozen`."""
    states = [value for state in step.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    base = {_key(value) for value in frozen}
    resting = {_key(value): value.untyped_storage().nbytes() for value in [*own_values(step.unet), *states]}
    kept = sum(size for key, size in resting.items() if key not in base)
    return kept + forward_peak(step, step.like.device)


def forward_peak(forward: Callable[[], None], device: torch.device) -> int:
    """Bytes at the highest point of a forward, above what was there before it."""
    gc.collect()
    if device.type != "cuda":
        return _highest(forward)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _highest(run: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    highest = current = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        highest = max(highest, current)
    return highest


@contextlib.contextmanager
def only_what_is_new() -> Iterator[None]:
    """Inside, the garbage collector passes over what was there before: imported packages alone take it a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Held(NamedTuple):
    """What tensors take: how many there are, and the bytes of their storages, each once."""

    tensors: int
    bytes: int


def live_tensors() -> Held:
    """All tensors of this process that Python's garbage collector knows."""
    gc.collect()
    found = [value for value in gc.get_objects() if issubclass(type(value), Tensor)]  # isinstance may wake a proxy
    sizes = {_key(value): value.untyped_storage().nbytes() for value in found if not value.is_meta}
    return Held(len(found), sum(sizes.values()))


def own_values(unet: Any) -> Iterator[Tensor]:
    """Parameters and buffers of a UNet and of its adapters, which may be in a module beside it."""
    for module in (unet, find_adapter_set(unet)):
        if module is not None:
            yield from module.parameters()
            yield from module.buffers()


def _key(value: Tensor) -> int:
    return value.untyped_storage()._cdata
