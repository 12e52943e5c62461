"""How a stock pipeline speaks with its denoiser: what the tests of bases compare ours with."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.pipelines import LENGTH, SIDE, fit, length
from train.bases import Base, BaseOptions, inspect_base, load_base

Arguments = dict[str, Any]
UNGUIDED: dict[str, Arguments] = {
    "hunyuan_dit": {"guidance_scale": 1.0, "use_resolution_binning": False, "original_size": (SIDE, SIDE)},
    "pixart_alpha": {"guidance_scale": 1.0, "use_resolution_binning": False},
    "pixart_sigma": {"guidance_scale": 1.0, "use_resolution_binning": False},
    "sana": {"guidance_scale": 1.0, "use_resolution_binning": False},
    "ideogram4": {"guidance_scale": 1.0, "guidance_schedule": None},
    "krea2": {"guidance_scale": 0.0},
    "z_image": {"guidance_scale": 0.0},
    "qwen_image": {},
}
"""What makes a pipeline call its denoiser once per step, where it is not guidance_scale=1."""


def places_first(latents: Tensor) -> Tensor:
    """The inverse of what Ideogram 4 does before it decodes: (b, c, h, w) -> tokens of 2 x 2 places of c channels."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, 4 * c)


PACKED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "flux": lambda pipeline, x: pipeline._pack_latents(x, *x.shape),
    "chroma": lambda pipeline, x: pipeline._pack_latents(x, *x.shape),
    "flux2": lambda pipeline, x: pipeline._pack_latents(pipeline._patchify_latents(x)),
    "flux2_klein": lambda pipeline, x: pipeline._pack_latents(pipeline._patchify_latents(x)),
    "ideogram4": lambda pipeline, x: places_first(x),
    "krea2": lambda pipeline, x: pipeline._pack_latents(x, *x.shape),
    "qwen_image": lambda pipeline, x: pipeline._pack_latents(x, *x.shape),
}
"""From (b, c, h, w) to the latents of the pipeline's loop, by its own functions, where they are not the same."""


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    """Arguments of a call by name, without those that say nothing."""
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    given = {name: value for name, value in given.items() if name not in ("self", "return_dict", "kwargs")}
    return {name: value for name, value in given.items() if value is not None and value != {}}


def load(folder: Path, **options: Any) -> Base:
    """The base of the pipeline in a folder, which reads prompts of `LENGTH`, where it takes one."""
    told = BaseOptions(pretrained_model_name_or_path=str(folder), **options)
    if "max_sequence_length" in inspect_base(told).kind.takes:
        told = dataclasses.replace(told, max_sequence_length=LENGTH)
    return load_base(inspect_base(told), told, torch.device("cpu"), torch.float32)


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
    settings |= UNGUIDED.get(name, {"guidance_scale": 1.0}) | length(pipeline)
    settings |= {"height": SIDE, "width": SIDE, "num_inference_steps": len(latents) + 1, "output_type": "latent"}
    with recorded(pipeline.components.get("transformer") or pipeline.components["unet"]) as calls:
        fit(pipeline)(prompt=list(prompts), **settings)
    return calls[1:], pipeline.scheduler.timesteps[1:]
