"""Weights of adapters inside a prompt: `a photo of a cat <lora:pet:0.8>`, the notation of Stable Diffusion web UIs."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .registry import nearest
from .weight import number

OPENING = re.compile(r"<\s*(?:lora|lyco|adapter)\s*:", re.IGNORECASE)
TAG = re.compile(OPENING.pattern + r"([^<>]*)>", re.IGNORECASE)
TAGS = re.compile(rf"(?<![\s,])[\s,]*(?:{TAG.pattern}[\s,]*)+", re.IGNORECASE)


def parse_prompt(prompt: str, known: Iterable[str] | None = None) -> tuple[str, dict[str, float]]:
    """The prompt without its tags, and adapter name -> weight in their order.

    A tag is `<lora:NAME>` (weight 1) or `<lora:NAME:WEIGHT>`; `lyco` and `adapter` say the same, of any family. A
    prompt without tags comes back as it is. `known`: the names that are allowed, any if not given. Raises ValueError
    for a tag that is not closed, has no name or no finite weight, or names an adapter that is unknown or was named.
    """
    names = None if known is None else list(known)
    weights: dict[str, float] = {}
    for tag in TAG.finditer(prompt):
        name, colon, weight = (part.strip() for part in tag[1].partition(":"))
        if not name:
            raise ValueError(f"{tag[0]} in the prompt names no adapter; write <lora:NAME:WEIGHT>")
        if names is not None and name not in names:
            raise ValueError(f"{tag[0]} in the prompt: unknown adapter {name!r}, {nearest(name, names)}")
        if name in weights:
            raise ValueError(f"{tag[0]} in the prompt: adapter {name!r} is named twice")
        weights[name] = _weight(weight, tag[0]) if colon else 1.0
    text = TAGS.sub(_between, prompt)
    if opened := OPENING.search(text):
        raise ValueError(f"{text[opened.start() :][:40]!r} in the prompt is not closed; write <lora:NAME:WEIGHT>")
    return text, weights


def _weight(text: str, tag: str) -> float:
    try:
        return number(float(text), "weight")
    except ValueError:
        raise ValueError(f"{tag} in the prompt: the weight {text!r} is no finite number") from None


def _between(tags: re.Match[str]) -> str:
    """What stays where tags were: nothing at the ends, else one comma if there was any, and a blank."""
    if tags.start() == 0 or tags.end() == len(tags.string):
        return ""
    return ", " if "," in TAG.sub("", tags[0]) else " "
