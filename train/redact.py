"""Secrets out of everything that is shown or written: tokens that the run was given, and whatever looks like one."""

from __future__ import annotations

import re
from collections.abc import Iterable

LOOKS_LIKE_A_TOKEN = re.compile(r"\b(?:api_org|hf|oauth)_[A-Za-z0-9_]{8,}")
HIDDEN = "(hidden)"
_secrets: set[str] = set()


def keep_secret(values: Iterable[str | None]) -> None:
    """From now on `redact` hides these values; what is shorter than 4 characters cannot be one."""
    _secrets.update(value for value in values if value and len(value) >= 4)


def redact(text: str) -> str:
    """`text` without tokens of the Hub and without what `keep_secret` was told."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return LOOKS_LIKE_A_TOKEN.sub(HIDDEN, text)
