"""Weights, masks and schedules of adapters as arguments of a pipeline's call, and as tags in its prompt.

The pipelines beside this file are stock pipelines of diffusers whose `__call__` went through `blending`:

    pipe = DiffusionPipeline.from_pretrained(
        BASE, custom_pipeline="pipelines/adapter_blend_sd.py", trust_remote_code=True
    )
    load_adapter(pipe, "pet.safetensors", "pet")
    pipe("a cat on a beach <lora:pet:0.8>", adapter_schedule=(0.2, 1.0), adapter_masks=Image.open("left.png"))
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diffusion_adapters import AdapterWeight, get_active_adapters, list_adapters, parse_prompt, use_adapters
from diffusion_adapters.prompt import TAG
from diffusion_adapters.registry import nearest
from diffusion_adapters.text import text_parts
from diffusion_adapters.weight import as_weight

DOC = """The stock pipeline's call, with other adapters for as long as it lasts; afterwards they act as before.

    - `adapter_weights`: {name: weight}, one weight for each attached adapter in the order of loading, or one for all
      that act. A weight is what `set_adapters` takes. Exactly these adapters act, and those of the prompt's tags.
    - `adapter_masks`: {name: mask}, a list of masks or None in the order of the acting adapters, or one for all: where
      in the image they act, as `AdapterWeight.mask`.
    - `adapter_schedule`: likewise {position: number}, a function of the position, or a pair (start, end).
    - `domain_weights`: the dials of a hybrid, {domain: number}, by adapter name if several act.
    - `prompt`: `<lora:NAME:0.8>` is taken out of it and multiplies the weight of adapter NAME, for its own images
      where prompts differ.

    Without any of these the adapters act that are active, and the images are those of the stock pipeline. Raises
    ValueError, TypeError before anything is drawn.
    """


def blending(stock: Callable[..., Any]) -> Callable[..., Any]:
    """The `__call__` of a stock pipeline with the arguments of `DOC`."""
    signature = inspect.signature(stock)

    def call(
        self: Any,
        *args: Any,
        adapter_weights: Any = None,
        adapter_masks: Any = None,
        adapter_schedule: Any = None,
        domain_weights: Any = None,
        **kwargs: Any,
    ) -> Any:
        given = signature.bind_partial(self, *args, **kwargs)
        tags = take_tags(given.arguments, list_adapters(self))
        images = given.arguments.get("num_images_per_prompt") or 1
        if adapter_weights is adapter_masks is adapter_schedule is domain_weights is None and not any(tags):
            return stock(*given.args, **given.kwargs)
        weights = as_asked(self, adapter_weights, tags)
        weights |= {name: tagged(self, name, weights[name], tags, images) for tag in tags for name in tag}
        for name, mask in by_name(adapter_masks, weights, "adapter_masks", _is_mask).items():
            weights[name] = _with(weights[name], name, "mask", {"mask": mask})
        for name, schedule in by_name(adapter_schedule, weights, "adapter_schedule", _is_schedule).items():
            pair = dict(zip(("start", "end"), schedule, strict=True)) if _is_pair(schedule) else {"schedule": schedule}
            weights[name] = _with(weights[name], name, "scheduled", pair)
        with use_adapters(self, list(weights), weights, domain_weights=domain_weights):
            return stock(*given.args, **given.kwargs)

    ours = [p for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY]
    theirs = list(signature.parameters.values())
    place = next((i for i, p in enumerate(theirs) if p.kind is p.VAR_KEYWORD), len(theirs))
    functools.update_wrapper(call, stock)
    call.__doc__ = DOC
    call.__signature__ = signature.replace(parameters=[*theirs[:place], *ours, *theirs[place:]])
    return call


def take_tags(arguments: dict[str, Any], known: Iterable[str]) -> list[dict[str, float]]:
    """The weights that each prompt names by tags, which are taken out of `arguments`. ValueError for a wrong tag."""
    for name, text in arguments.items():
        if "prompt" in name and name != "prompt":
            for one in text if isinstance(text, (list, tuple)) else [text]:
                if isinstance(one, str) and (tag := TAG.search(one)):
                    raise ValueError(f"{tag[0]} stands in {name}; tags belong in prompt")
    prompts = arguments.get("prompt")
    if isinstance(prompts, str):
        arguments["prompt"], weights = parse_prompt(prompts, known)
        return [weights]
    if not isinstance(prompts, (list, tuple)):
        return []
    parsed = [parse_prompt(prompt, known) for prompt in prompts]
    arguments["prompt"] = [text for text, _ in parsed]
    return [weights for _, weights in parsed]


def as_asked(pipe: Any, given: Any, tags: Sequence[Mapping[str, float]]) -> dict[str, AdapterWeight]:
    """The weights of a call by adapter name, before tags are multiplied in."""
    attached = list(list_adapters(pipe))
    named = [name for tag in tags for name in tag]
    if isinstance(given, Mapping):
        for name in given:
            if name not in attached:
                raise ValueError(f"adapter_weights: unknown adapter {name!r}, {nearest(str(name), attached)}")
        own = dict(given)
    elif isinstance(given, (list, tuple)):
        own = by_name(given, attached, "adapter_weights", lambda _: False)
    elif given is None:
        own = {} if named else get_active_adapters(pipe)
    else:
        own = dict.fromkeys(named or get_active_adapters(pipe), given)
    return {name: as_weight(own.get(name, 1.0), name) for name in dict.fromkeys([*own, *named])}


def tagged(
    pipe: Any, name: str, weight: AdapterWeight, tags: Sequence[Mapping[str, float]], images: int
) -> AdapterWeight:
    """`weight` times what tags say of adapter `name`: one number, or one for each of the `images` of each prompt."""
    values = [tag.get(name, 0.0) for tag in tags]
    if len(set(values)) == 1:
        return dataclasses.replace(weight, value=weight.value * values[0])
    if text_parts(pipe, name):
        raise ValueError(
            f"adapter {name!r} changes text encoders too, where prompts of one batch cannot have different weights "
            f"({', '.join(map(str, values))}); call the pipeline once for each"
        )
    samples = [value for value in values for _ in range(images)]
    own = weight.samples or (1.0,) * len(samples)
    if len(own) != len(samples):
        raise ValueError(f"adapter {name!r} has samples for {len(own)} images, but {len(samples)} are made")
    return dataclasses.replace(weight, samples=[a * b for a, b in zip(own, samples, strict=True)])


def by_name(given: Any, names: Iterable[str], argument: str, is_one: Callable[[Any], bool]) -> dict[str, Any]:
    """What is given by adapter name, in order, or once for all, by the names of those that have it."""
    names = list(names)
    if given is None:
        return {}
    if not names:
        raise ValueError(f"{argument} is given, but no adapter acts; load one, or name it in adapter_weights")
    if is_one(given):
        return dict.fromkeys(names, given)
    if isinstance(given, (list, tuple)):
        if len(given) != len(names):
            raise ValueError(f"{len(given)} {argument} for {len(names)} adapters: {', '.join(names)}")
        given = dict(zip(names, given, strict=True))
    for name in given:
        if name not in names:
            raise ValueError(f"{argument} names {name!r}, which does not act in this call, {nearest(str(name), names)}")
    return {name: value for name, value in given.items() if value is not None}


def _is_mask(given: Any) -> bool:
    return not isinstance(given, (Mapping, list, tuple))


def _is_schedule(given: Any) -> bool:
    if isinstance(given, Mapping):
        return bool(given) and not any(isinstance(key, str) for key in given)
    return _is_pair(given) or not isinstance(given, (list, tuple))


def _is_pair(given: Any) -> bool:
    return isinstance(given, (list, tuple)) and len(given) == 2 and all(isinstance(n, numbers.Real) for n in given)


def _with(weight: AdapterWeight, name: str, what: str, changes: Mapping[str, Any]) -> AdapterWeight:
    before = getattr(weight, what)
    if before is not None and before is not False:
        said = "a mask" if what == "mask" else "a schedule"
        raise ValueError(f"adapter {name!r} has {said} in its weight already; give it once")
    return dataclasses.replace(weight, **changes)
