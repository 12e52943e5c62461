"""New tokens of an adapter (pivotal tuning): words that the tokenizers learn, and rows of embedding for them.

Tokenizers and encoders know the tokens of the adapters that are active and no others; without any they are as they
were. A row is not scaled by a weight: a word is known or it is not.

A word of several tokens is named as textual inversion in diffusers names it: in a prompt TOK stands for TOK TOK_1 …
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .vocabulary import Vocabulary
from .weight import AdapterWeight, as_weight

PULL = 0.1
"""Power of std(embedding) / std(rows) by which `keep_norm` scales the rows, as in cog-sdxl and diffusers' scripts."""


@dataclass(frozen=True)
class TokenPart:
    """The new tokens of one text encoder and their rows of embedding, (tokens, width)."""

    tokens: tuple[str, ...]
    rows: Tensor

    def as_dict(self) -> dict[str, Any]:
        """What a file's header says of them."""
        return {"tokens": self.tokens}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TokenPart:
        """From a file. Raises ValueError, KeyError or TypeError for what is no such thing."""
        found = cls(tuple(str(token) for token in settings["tokens"]), tensors["rows"])
        if found.rows.dim() != 2 or len(found.rows) != len(found.tokens):
            raise ValueError(f"{len(found.tokens)} new tokens have rows of shape {tuple(found.rows.shape)}")
        return found


def find_text_encoders(model: Any) -> dict[str, Any]:
    """The CLIP text encoders of a pipeline by component name; none of a denoiser."""
    components = getattr(model, "components", None)
    parts = components.items() if isinstance(components, Mapping) else ()
    return {name: part for name, part in parts if name.startswith("text_encoder") and "CLIP" in type(part).__name__}


def add_tokens(
    model: Any, name: str, words: Sequence[str] = ("TOK",), count: int = 2, initializer: str | None = None
) -> list[nn.Parameter]:
    """Teach each CLIP text encoder `count` new tokens for each of `words`, as part of the adapter `name`; their rows.

    Rows start as those of the word `initializer`, or are drawn with the deviation of the embedding. Raises ValueError
    if a text encoder of the pipeline is no CLIP, or if a token is taken; then nothing is changed.
    """
    tokens = tuple(word if i == 0 else f"{word}_{i}" for word in words for i in range(count))
    parts = {}
    for component, (encoder, tokenizer) in _pairs(model).items():
        table = encoder.get_input_embeddings().weight.detach()
        if initializer is None:
            rows = torch.randn(len(tokens), table.shape[1]) * float(table.float().std())
        else:
            known = tokenizer(initializer, add_special_tokens=False).input_ids
            if not known:
                raise ValueError(f"{initializer!r} is no word that new tokens could start from")
            rows = table[[known[min(i % count, len(known) - 1)] for i in range(len(tokens))]].float().cpu()
        parts[component] = TokenPart(tokens, rows)
    load_tokens(model, name, parts, trainable=True)
    return [vocabulary.parts[name][1] for vocabulary in _vocabularies(model).values()]


def token_rows(model: Any) -> list[nn.Parameter]:
    """The rows of all new tokens of all adapters of a pipeline."""
    return [rows for vocabulary in _vocabularies(model).values() for _, rows in vocabulary.parts.values()]


def token_parts(model: Any, name: str) -> dict[str, TokenPart]:
    """The new tokens of adapter `name`, by the component name of the text encoder."""
    found = {component: vocabulary.parts.get(name) for component, vocabulary in _vocabularies(model).items()}
    return {component: TokenPart(part[0], part[1].detach()) for component, part in found.items() if part is not None}


def load_tokens(model: Any, name: str, parts: Mapping[str, TokenPart], trainable: bool) -> None:
    """Attach tokens and make them known. All or nothing; raises ValueError that names what does not fit."""
    pairs = _pairs(model) if parts else {}
    present = _vocabularies(model)
    for component, part in parts.items():
        if component not in pairs:
            raise ValueError(f"it also has tokens of {component}; load it onto a pipeline that has one")
        encoder, tokenizer = pairs[component]
        _check(part.tokens, tokenizer, present.get(component))
        width = encoder.get_input_embeddings().weight.shape[1]
        if part.rows.shape[1] != width:
            raise ValueError(f"its tokens of {component} have rows of {part.rows.shape[1]} numbers, here of {width}")
    for component, part in parts.items():
        vocabulary = present.get(component) or Vocabulary(*pairs[component])
        rows = part.rows.detach().to(vocabulary.embedding.weight.device, torch.float32, copy=True)
        vocabulary.parts[name] = (part.tokens, nn.Parameter(rows, requires_grad=trainable))
        vocabulary.know([*vocabulary.first, name])


@torch.no_grad()
def fill_tokens(model: Any, name: str, parts: Mapping[str, TokenPart]) -> None:
    """Give the tokens of adapter `name` the rows of `parts`, which are of the same tokens."""
    for component, vocabulary in _vocabularies(model).items():
        if name in vocabulary.parts:
            vocabulary.parts[name][1].copy_(parts[component].rows)


def set_tokens(model: Any, weights: Mapping[str, float | AdapterWeight]) -> None:
    """Make exactly the tokens of the adapters of `weights` known whose weight is not 0."""
    for vocabulary in _vocabularies(model).values():
        vocabulary.know([name for name, weight in weights.items() if as_weight(weight, name).value != 0])


def delete_tokens(model: Any, name: str) -> None:
    """Take the tokens of adapter `name` away; without any, tokenizers and encoders are as they were."""
    for vocabulary in _vocabularies(model).values():
        if name in vocabulary.parts:
            vocabulary.know([other for other in vocabulary.first if other != name])
            del vocabulary.parts[name]
        if not vocabulary.parts:
            vocabulary.close()


@torch.no_grad()
def keep_norm(model: Any) -> None:
    """Pull the deviation of the rows that are trained towards that of the embedding, as the recipe does each step."""
    for vocabulary in _vocabularies(model).values():
        for _, rows in vocabulary.parts.values():
            if rows.requires_grad:
                rows.mul_((vocabulary.deviation / rows.std()) ** PULL)


def embeddings(parts: Mapping[str, TokenPart]) -> dict[str, Tensor]:
    """The rows by the names that other programs know the encoders of SD and SDXL by: clip_l, clip_g."""
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    return {names[component]: part.rows.detach().cpu() for component, part in parts.items()}


def _check(tokens: Sequence[str], tokenizer: Any, vocabulary: Vocabulary | None) -> None:
    """Raise ValueError for tokens that cannot be added."""
    known = tokenizer.get_vocab()
    for token in tokens:
        owners = [] if vocabulary is None else [name for name, (own, _) in vocabulary.parts.items() if token in own]
        if owners:
            raise ValueError(f"token {token!r} is one of adapter {owners[0]!r} too; delete that adapter first")
        if token in known or f"{token}</w>" in known:
            raise ValueError(f"token {token!r} is one that the tokenizer knows; a new one needs another name")
        if not re.fullmatch(r"\w+", token):
            raise ValueError(f"token {token!r} must be one word of letters, digits and _")


def _pairs(model: Any) -> dict[str, tuple[Any, Any]]:
    """(text encoder, tokenizer) by component name. Raises ValueError for a pipeline whose encoders are not all CLIP."""
    components = getattr(model, "components", {})
    encoders = find_text_encoders(model)
    for component, part in components.items():
        if component.startswith("text_encoder") and part is not None and component not in encoders:
            raise ValueError(f"{component} is a {type(part).__name__}; new tokens go into CLIP text encoders alone")
    if not encoders:
        raise ValueError(f"{type(model).__name__} has no CLIP text encoder that new tokens could go into")
    return {name: (part, components[name.replace("text_encoder", "tokenizer")]) for name, part in encoders.items()}


def _vocabularies(model: Any) -> dict[str, Vocabulary]:
    """What there is of new tokens, by the component name of the text encoder."""
    found = {}
    for component, encoder in find_text_encoders(model).items():
        for hook in encoder.get_input_embeddings()._forward_pre_hooks.values():
            if isinstance(owner := getattr(hook, "__self__", None), Vocabulary):
                found[component] = owner
    return found
