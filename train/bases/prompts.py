"""Prompts that are read inside of a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def template_length(tokenizer: Any, *said: tuple[str, Any], **options: Any) -> int:
    """Tokens that the template takes around an empty prompt. `said`: (role, content) of each message."""
    messages = [{"role": role, "content": content} for role, content in said]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return len(text_tokenizer(tokenizer)(text, add_special_tokens=False).input_ids)


def text_tokenizer(processor: Any) -> Any:
    """The tokenizer of a processor that also reads pictures, or the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def written(text: str) -> Sequence[dict[str, str]]:
    """Content of a message, in parts, as processors take it."""
    return [{"type": "text", "text": text}]
