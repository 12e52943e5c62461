"""What diffusers has that can take the place of a part of a base: other samplers, a pipeline for pictures."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers


def samplers(scheduler: Any) -> dict[str, type]:
    """Schedulers by name that can take the place of a base's own, which is the first."""
    own = type(scheduler)
    others = sorted((kind for kind in scheduler.compatibles if _fits(kind, scheduler)), key=lambda kind: kind.__name__)
    return {kind.__name__.removesuffix("Scheduler"): kind for kind in (own, *others)}


def from_picture(pipe: Any) -> Any:
    """The pipeline that draws from a picture, of the parts of another; None if there is none."""
    kind = named(type(pipe))
    if kind is not None:
        own = {**pipe.config, **pipe.components}
        return kind(**{name: own[name] for name in inspect.signature(kind).parameters if name in own})
    try:  # under another name, if at all: diffusers imports all that it has to look it up
        return diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError:
        return None


def named(kind: type) -> Any:
    """The pipeline that draws from a picture, found by the name of the one that does not; None if there is none."""
    return getattr(diffusers, kind.__name__.replace("Pipeline", "Img2ImgPipeline"), None)


def _fits(kind: type, scheduler: Any) -> bool:
    """Whether a scheduler can be made here and draws by the numbers of another's configuration."""
    missing = kind.__module__.startswith("diffusers.utils.dummy")
    edm = "EDM" in kind.__name__  # its noise levels are its own, and no other's betas give them
    lost = kind is diffusers.KDPM2AncestralDiscreteScheduler and _drowned(scheduler)
    return kind is not type(scheduler) and not missing and not edm and not lost


def _drowned(scheduler: Any) -> bool:
    """Whether nothing is left of a picture at the first step: 1 - alpha is 1 to the last digit, or nearly."""
    alphas = getattr(scheduler, "alphas_cumprod", None)  # of samplers that divide by what is left, rounding decides
    return alphas is not None and float(alphas.min()) < 1e-7
