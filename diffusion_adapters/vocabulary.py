"""What a tokenizer and its CLIP text encoder know beyond their own vocabulary, without a trace in either's weights.

The rows of new tokens stand beside the embedding of the encoder, not in it: hooks put them where their tokens are.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn


class Vocabulary:
    """The new tokens of one text encoder by adapter: hooks on its embedding, and what its tokenizer knows."""

    def __init__(self, encoder: Any, tokenizer: Any) -> None:
        self.tokenizer, self.embedding = tokenizer, encoder.get_input_embeddings()
        self.parts: dict[str, tuple[tuple[str, ...], nn.Parameter]] = {}
        self.first: dict[str, int] = {}
        """Of each adapter that is active, the number of its first token."""
        self.deviation = float(self.embedding.weight.detach().float().std())
        """Standard deviation of the embedding's numbers."""
        self._plain: Any = None
        self._extended: Any = None
        self._ids: Tensor | None = None
        # CLIP of before transformers 4.31 takes the largest number for the end of a text, which no longer holds.
        self._ends = [part for part in encoder.modules() if getattr(part, "eos_token_id", None) == 2]
        self.embedding.register_forward_pre_hook(self.before)
        self.embedding.register_forward_hook(self.after)

    def before(self, embedding: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook: the table has no rows of ours; ask it for another one in their places."""
        if not self.first:
            return None
        self._ids = args[0]
        return (args[0].where(args[0] < len(self.embedding.weight), 0), *args[1:])

    def after(self, embedding: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook: our rows where our tokens are."""
        for name, first in self.first.items():
            assert self._ids is not None
            rows = self.parts[name][1].to(output)
            places = self._ids.to(output.device) - first
            inside = (places >= 0) & (places < len(rows))
            output = torch.where(inside.unsqueeze(-1), rows[places.clamp(0, len(rows) - 1)], output)
        return output

    def know(self, names: Collection[str]) -> None:
        """Make tokenizer and encoder know the tokens of exactly these adapters. Raises RuntimeError if they cannot."""
        wanted = [name for name in self.parts if name in names]
        if wanted == list(self.first):
            return
        if not self.first:
            self._plain = self.tokenizer.backend_tokenizer
        elif self.tokenizer.backend_tokenizer is not self._extended or len(self.tokenizer) != self._size():
            raise RuntimeError(
                f"the tokenizer was given other tokens after those of adapter {next(iter(self.first))!r}; take them "
                "away first, as by pipe.unload_textual_inversion()"
            )
        backend = copy.deepcopy(self._plain) if wanted else self._plain
        self.first = {}
        for name in wanted:
            tokens = self.parts[name][0]
            backend.add_tokens([AddedToken(token, single_word=True, normalized=False) for token in tokens])
            self.first[name] = backend.token_to_id(tokens[0])
        self.tokenizer._tokenizer = self._extended = backend
        for part in self._ends:
            part.eos_token_id = self.tokenizer.eos_token_id if wanted else 2

    def close(self) -> None:
        """Take the hooks away."""
        for hooks in (self.embedding._forward_pre_hooks, self.embedding._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]

    def _size(self) -> int:
        return int(self._plain.get_vocab_size()) + sum(len(self.parts[name][0]) for name in self.first)
