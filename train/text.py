"""What is trained of the text encoders: a LoRA on them, new tokens (pivotal tuning), or both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_adapters import add_text_adapter, add_tokens
from diffusion_adapters.options import Options, option
from diffusion_adapters.tokens import keep_norm, token_rows


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options):
    title: ClassVar[str] = "text encoders"
    train_text_encoder: bool = option(False, "also train a LoRA on the CLIP text encoders, kept in the same file")
    text_encoder_lr: float | None = option(
        None, "learning rate of text encoders and new tokens (default: that of the adapter)", gt=0
    )
    text_encoder_rank: int = option(4, "rank of that LoRA", ge=1)
    train_text_encoder_ti: bool = option(
        False, "also train new tokens of the CLIP text encoders (pivotal tuning), kept in the same file"
    )
    train_text_encoder_ti_frac: float = option(
        0.5, "part of the steps in which new tokens are trained; then they stay", ge=0, le=1
    )
    token_abstraction: tuple[str, ...] = option(("TOK",), "words of the prompts that new tokens stand for")
    num_new_tokens_per_abstraction: int = option(2, "new tokens for each of these words", ge=1)
    initializer_concept: str | None = option(None, "word that new tokens start as (default: they are drawn)")

    @property
    def live_texts(self) -> bool:
        """Whether prompts have to be encoded at each step."""
        return self.train_text_encoder or self.train_text_encoder_ti


def check(config: Any, encoders: Mapping[str, str], prompts: Iterable[str]) -> None:
    """Raise ValueError for what cannot be trained or has no effect. `encoders`: classes by component."""
    if config.initializer_concept is not None and not config.train_text_encoder_ti:
        raise ValueError(
            f"--initializer_concept {config.initializer_concept} has no effect without --train_text_encoder_ti"
        )
    clip = [name for name, kind in encoders.items() if "CLIP" in str(kind)]
    if config.train_text_encoder and not clip:
        raise ValueError(f"--train_text_encoder: {_has(encoders)}; leave it out, or choose a base with a CLIP one")
    if not config.train_text_encoder_ti:
        return
    if not clip or len(clip) < len(encoders):
        raise ValueError(
            f"--train_text_encoder_ti: {_has(encoders)}; new tokens go into CLIP text encoders alone, as of Stable "
            "Diffusion 1, 2 and XL: leave it out"
        )
    words = {word for prompt in prompts for word in re.findall(r"\w+", prompt)}
    for word in config.token_abstraction:
        if word not in words:
            raise ValueError(
                f"--token_abstraction {word}: no prompt or caption has that word; write --instance_prompt "
                f'"a photo of {word} dog", or name one that they have'
            )


def attach_text(pipeline: Any, name: str, config: Any) -> None:
    """Put what a new run trains on the text encoders, as part of the adapter `name`; it depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.train_text_encoder:
            add_text_adapter(pipeline, name, config.text_encoder_rank)
        if config.train_text_encoder_ti:
            count = config.num_new_tokens_per_abstraction
            add_tokens(pipeline, name, config.token_abstraction, count, config.initializer_concept)


class TextTraining:
    """The trained parameters of the text encoders of a base, and what a step does to new tokens besides."""

    def __init__(self, base: Any, options: TextOptions, steps: int) -> None:
        self.pipeline = base.pipeline
        self.tokens = [rows for rows in token_rows(base.pipeline) if rows.requires_grad]
        encoders = base.text_encoders.values()
        low_rank = [value for encoder in encoders for value in encoder.parameters() if value.requires_grad]
        self.parameters: list[nn.Parameter] = [*low_rank, *self.tokens]
        self.pivot = round(options.train_text_encoder_ti_frac * steps)
        """The last step in which new tokens are trained."""

    def begin(self, step: int) -> None:
        """Before a step: new tokens are trained up to the pivot."""
        for rows in self.tokens:
            rows.requires_grad_(step <= self.pivot)

    def end(self) -> None:
        """After the optimizer's step: the tokens that it changed keep about the norm of others."""
        if self.tokens:
            keep_norm(self.pipeline)


def _has(encoders: Mapping[str, str]) -> str:
    return f"this base has {', '.join(f'a {kind}' for kind in encoders.values()) or 'no text encoder'}"
