"""What tests of the app's trainings share: pictures, quick settings, and the bases without a model."""

from __future__ import annotations

from train.data.options import SAMPLE_SUBJECT
from ui.bases import Base
from ui.runs import Runs

SUBJECT = sorted(SAMPLE_SUBJECT.glob("*.png"))
FAST = {"num_validation_images": 0, "validation_steps": None, "rank": 2, "target_modules": ["attn2.to_q"]}


class Bases:
    """A studio as far as trainings look at it."""

    def __init__(self, open_to_bases: bool = True) -> None:
        self.bases, self.open_to_bases, self.first = {"pocket": Base.of(None)}, open_to_bases, "pocket"

    def base(self, name: str = "") -> Base:
        return self.bases[name or self.first]


def end(runs: Runs) -> None:
    """Let no process of these runs outlive the test."""
    for run in runs.list():
        run.note(queued=None)
    for run in runs.list():
        if run.process is not None:
            run.process.kill()
