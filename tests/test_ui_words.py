"""Messages of options, in the words of the page."""

from __future__ import annotations

import pytest

from ui.words import worded

LABELS = {"seed": "Seed", "num_images": "Pictures", "resolution": "Resolution", "pilot": "Pilot"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("seed must be int, got 3.7 (float)", "Seed must be a whole number, got 3.7"),
        ("seed must be at least 0, got -1", "Seed must be at least 0, got -1"),
        ("num_images must be int, got 'a (b)' (str)", "Pictures must be a whole number, got 'a (b)'"),
        ("--resolution 47 must be a multiple of 4", "Resolution 47 must be a multiple of 4"),
        ("--early_stop 3 has no effect without --pilot", "--early_stop 3 has no effect without Pilot"),
        ("a seed must be sown", "a seed must be sown"),
    ],
)
def test_labels_stand_for_names_and_flags(said: str, words: str) -> None:
    assert worded(said, LABELS) == words
