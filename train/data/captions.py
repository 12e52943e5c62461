"""Captions: whose they are, what stands in them, and which variant of one a training sample gets."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, TypeVar

from train.data.options import TRIGGER, DataOptions

C = TypeVar("C")


def clean(text: str, options: DataOptions, where: str) -> str:
    """One line, with the trigger word in place. Raises ValueError, naming `where`, if there is none to put."""
    text = " ".join(text.split())
    if TRIGGER in text and options.trigger_word is None:
        raise ValueError(f"{where} has {TRIGGER}; say what it stands for by --trigger_word")
    return text.replace(TRIGGER, options.trigger_word or "")


def with_trigger(config: C) -> C:
    """The options with the trigger word in their prompts."""
    options: Any = config
    prompts = options.validation_prompt
    shown = None if prompts is None else tuple(clean(text, options, "--validation_prompt") for text in prompts)
    prompt = clean(options.instance_prompt, options, "--instance_prompt")
    return dataclasses.replace(options, instance_prompt=prompt, validation_prompt=shown)


def variants(caption: str, options: DataOptions) -> tuple[str, ...]:
    """The orders of its tags in which a caption is trained, each once; it is itself the only one without shuffling.

    They depend on the caption alone, so that they are found again in a cache whatever the seed.
    """
    if not options.shuffle_caption:
        return (caption,)
    tags = [tag.strip() for tag in caption.split(options.caption_separator) if tag.strip()]
    kept, rest = tags[: options.keep_tokens], tags[options.keep_tokens :]
    found: dict[str, None] = {}
    for number in range(options.caption_variants):
        order = random.Random(f"{number} {caption}").sample(rest, len(rest))
        joined = options.caption_separator.strip() + " "
        found[joined.join([*kept, *order])] = None
    return tuple(found)


def chosen(caption: str, options: DataOptions, key: str) -> str:
    """The text that the sample `key` is trained with: a variant of its caption, or none at all."""
    rng = random.Random(key)
    if rng.random() < options.caption_dropout:
        return ""
    return rng.choice(variants(caption, options))


def all_texts(captions: list[str], options: DataOptions) -> list[str]:
    """Every text that `chosen` can return for these captions, each once."""
    dropped = [""] if options.caption_dropout else []
    return list(dict.fromkeys([text for caption in captions for text in variants(caption, options)] + dropped))
