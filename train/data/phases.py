"""A run whose samples are first those of one data set, then those of another."""

from __future__ import annotations

from typing import Any

from train.data.dataset import CachedImages


class Phases:
    """The samples of a run by number: the first `count` of one data set, then those of another."""

    def __init__(self, first: CachedImages, then: CachedImages, count: int) -> None:
        self.first, self.then, self.count = first, then, count
        self.fingerprint = f"{then.fingerprint} after {count}"

    def __len__(self) -> int:
        return len(self.then)

    def _of(self, numbers: list[int]) -> CachedImages:
        return self.first if numbers[0] < self.count else self.then

    def batch(self, numbers: list[int], seed: int) -> dict[str, Any]:
        """As of the data set."""
        return self._of(numbers).batch(numbers, seed)

    def names(self, numbers: list[int], seed: int) -> list[str]:
        """As of the data set."""
        return self._of(numbers).names(numbers, seed)

    def texts(self, numbers: list[int], seed: int) -> list[str]:
        """As of the data set."""
        return self._of(numbers).texts(numbers, seed)
