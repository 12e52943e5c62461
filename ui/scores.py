"""Fidelity of single pictures to a subject, by the encoders of the ruler that suit a base."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from train.bases.load import ROOT
from train.pilot import PilotOptions, without
from train.ruler import Encoder, Ruler, Suite, load_protocol
from ui.bases import Base
from ui.entry import open_picture
from ui.library import Library

METRICS = ("subject_fidelity", "prompt_fidelity")
MAX_PICTURES = 32
SAMPLE = "the sample subject"
SUBJECTS = "subjects"
"""The folder in the library's own with a folder of pictures for each subject."""


class Judge:
    """Scores pictures against those of a subject. Raises ValueError for a subject without pictures."""

    def __init__(self, subject: Sequence[Path], base: Base) -> None:
        if not 1 <= len(subject) <= MAX_PICTURES:
            raise ValueError(f"{len(subject)} pictures of the subject; give from 1 to {MAX_PICTURES}")
        protocol = load_protocol("pocket" if base.source is None else "dreambooth30")
        self.pictures = [open_picture(path) for path in subject]
        self.encoders = [protocol.image_encoder, protocol.text_encoder or protocol.image_encoder]
        self._rulers: dict[str, Ruler] = {}

    def score(self, picture: Image.Image, prompt: str) -> Mapping[str, float]:
        """Cosine with the pictures of the subject, and with the prompt without its rare word."""
        if prompt not in self._rulers:
            text = without(prompt, PilotOptions().rare_word)
            suite = Suite(prompts=(prompt,), texts=(text,), seeds=1)
            self._rulers[prompt] = Ruler(suite, self.pictures, *map(_encoder, self.encoders), METRICS)
        ruler = self._rulers[prompt]
        found = ruler.score(ruler.encode({"subject": [[picture]]})).values
        return {name: float(values[0, 0]) for name, values in found.items()}


@functools.lru_cache(4)
def _encoder(name: str) -> Encoder:
    own = ROOT / name
    return Encoder(str(own) if own.is_dir() else name)


def subjects(library: Library) -> dict[str, Path]:
    """Folders of pictures that are at hand, by name: the sample, and those in the library's own folder."""
    own = library.own.folder / SUBJECTS if library.own else None
    found = sorted(path for path in own.iterdir() if path.is_dir()) if own and own.is_dir() else []
    return {SAMPLE: ROOT / "train" / "sample_subject", **{path.name: path for path in found}}


def pictures_of(subject: str, library: Library) -> list[Path]:
    """The pictures of a subject at hand. Raises ValueError for an unknown one."""
    known = subjects(library)
    if subject not in known:
        raise ValueError(f"no subject {subject!r}; there are: {', '.join(known)}")
    kinds = {".png", ".jpg", ".jpeg", ".webp"}
    return sorted(path for path in known[subject].iterdir() if path.suffix.lower() in kinds)
