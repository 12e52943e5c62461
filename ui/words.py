"""What is refused, in the words of the page: controls by their labels, and no types of Python."""

from __future__ import annotations

import re
from collections.abc import Mapping

KINDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "on or off"}


def worded(said: str, labels: Mapping[str, str]) -> str:
    """The message of a check of options, or of the trainer, with `labels` in place of names and flags."""

    def label(found: re.Match[str]) -> str:
        return labels.get(found[1], found[0])

    said = re.sub(r"--(\w+)", label, said)
    said = re.sub(r"^(\w+)(?= must be )", label, said)

    def kind(found: re.Match[str]) -> str:
        return f"must be {KINDS[found[1]]}, got {found[2]}"

    return re.sub(rf"\bmust be ({'|'.join(KINDS)}), got (.*) \(\w+\)$", kind, said)
