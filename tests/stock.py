"""How a stock pipeline speaks with its denoiser: what the tests of bases compare ours with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.pipelines import SIDE, length

Arguments = dict[str, Any]
UNGUIDED: dict[str, Arguments] = {
    "hunyuan_dit": {"guidance_scale": 1.0, "use_resolution_binning": False, "original_size": (SIDE, SIDE)},
    "pixart_alpha": {"guidance_scale": 1.0, "use_resolution_binning": False},
    "pixart_sigma": {"guidance_scale": 1.0, "use_resolution_binning": False},
    "sana": {"guidance_scale": 1.0, "use_resolution_binning": False},
    "z_image": {"guidance_scale": 0.0},
    "qwen_image": {},
}
"""What makes a pipeline call its denoiser once per step, where it is not guidance_scale=1."""
PACKED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "flux": lambda pipeline, x: pipeline._pack_latents(x, *x.shape),
    "chroma": lambda pipeline, x: pipeline._pack_latents(x, *x.shape),
    "flux2": lambda pipeline, x: pipeline._pack_latents(pipeline._patchify_latents(x)),
    "flux2_klein": lambda pipeline, x: pipeline._pack_latents(pipeline._patchify_latents(x)),
    "qwen_image": lambda pipeline, x: pipeline._pack_latents(x, *x.shape),
}
"""From (b, c, h, w) to the latents of the pipeline's loop, by its own functions, where they are not the same."""


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    """Arguments of a call by name, without those that say nothing."""
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    given = {name: value for name, value in given.items() if name not in ("self", "return_dict", "kwargs")}
    return {name: value for name, value in given.items() if value is not None and value != {}}


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Arguments]]:
    """The calls of `module` while the context is open."""
    calls: list[Arguments] = []
    hook = module.register_forward_pre_hook(lambda m, a, k: calls.append(bound(m, a, k)), with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def stock_calls(pipeline: Any, name: str, prompts: list[str], latents: list[Tensor]) -> tuple[list[Arguments], Tensor]:
    """The denoiser's arguments at each of `latents` (b, c, h, w), put into the pipeline's own loop, and its timesteps.

    The loop begins with latents that it draws; what follows is replaced after each step.
    """
    pack, fresh = PACKED.get(name, lambda pipeline, x: x), iter(latents)

    def replace(pipeline: Any, step: int, timestep: Tensor, state: Arguments) -> Arguments:
        plain = next(fresh, None)
        return state if plain is None else {**state, "latents": pack(pipeline, plain)}

    def overwrite(step: int, timestep: Tensor, drawn: Tensor) -> None:
        drawn.copy_(replace(pipeline, step, timestep, {"latents": drawn})["latents"])

    settings: Arguments = {"callback_on_step_end": replace}
    if "callback_on_step_end" not in inspect.signature(type(pipeline).__call__).parameters:
        settings = {"callback": overwrite}  # as pipelines had it before
    settings |= {"height": SIDE, "width": SIDE, "num_inference_steps": len(latents) + 1, "output_type": "latent"}
    with recorded(pipeline.components.get("transformer") or pipeline.components["unet"]) as calls:
        pipeline(prompt=list(prompts), **settings, **length(pipeline), **UNGUIDED.get(name, {"guidance_scale": 1.0}))
    return calls[1:], pipeline.scheduler.timesteps[1:]


@dataclass(frozen=True)
class Convention:
    """How the denoiser of a flow is spoken to, told anew: noisy latents and σ from a call, the answer from a velocity.

    `noisy` gives (b, c, h, w); `sigma` (b,); `answer` takes the velocity noise − latents, (b, c, h, w).
    """

    noisy: Callable[[Arguments], Tensor] = lambda call: call["hidden_states"]
    sigma: Callable[[Arguments], Tensor] = lambda call: call["timestep"] / 1000
    answer: Callable[[Tensor], Any] = lambda velocity: velocity


def from_tokens(call: Arguments) -> Tensor:
    """A square of tokens of 2 x 2 latents -> (b, c, h, w)."""
    tokens = call["hidden_states"]
    side = round(tokens.shape[1] ** 0.5)
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), 2)


def to_tokens(velocity: Tensor) -> Tensor:
    return nn.functional.pixel_unshuffle(velocity, 2).flatten(2).transpose(1, 2)


FLOWS: dict[str, Convention] = {
    "auraflow": Convention(sigma=lambda call: call["timestep"]),
    "chroma": Convention(from_tokens, lambda call: call["timestep"], to_tokens),
    "flux": Convention(from_tokens, lambda call: call["timestep"], to_tokens),
    "flux2": Convention(from_tokens, lambda call: call["timestep"], to_tokens),
    "flux2_klein": Convention(from_tokens, lambda call: call["timestep"], to_tokens),
    "lumina2": Convention(sigma=lambda call: 1 - call["timestep"], answer=torch.neg),
    "qwen_image": Convention(from_tokens, lambda call: call["timestep"], to_tokens),
    "sana": Convention(sigma=lambda call: call["timestep"] / 500),  # half, by the tiny one's timestep_scale
    "sd3": Convention(),
    "z_image": Convention(
        lambda call: torch.stack(call["x"]).squeeze(2), lambda call: 1 - call["t"], lambda v: list(-v.unsqueeze(2))
    ),
}


@contextmanager
def perfect(denoiser: nn.Module, name: str, clean: Tensor) -> Iterator[list[Tensor]]:
    """The denoiser knows the latents (b, c, h, w) of its pictures. Yields the σ that it is asked at, each (b,)."""
    convention, asked = FLOWS[name], []

    def answer(*args: Any, **kwargs: Any) -> tuple[Any]:
        call = bound(denoiser, args, kwargs)
        sigma = convention.sigma(call)
        asked.append(sigma)
        return (convention.answer((convention.noisy(call) - clean) / sigma.view(-1, 1, 1, 1)),)

    denoiser.forward = answer  # type: ignore[method-assign]
    try:
        yield asked
    finally:
        del denoiser.forward
