"""The ruler: has an adapter learned its subject, does it still follow prompts, and what else did it change?

    ruler = Ruler(suite, subject_pictures, Encoder("facebook/dino-vits16"), Encoder("openai/clip-vit-base-patch32"))
    base = ruler.draw(draw)                   # with adapters off
    scores = ruler.score(ruler.draw(draw), base)   # with an adapter at work
    scores.interval("subject_fidelity")

`draw` makes one picture per pair of prompt and seed. Fidelity alone rewards copying the training pictures: read it with
prompt fidelity, the nearest training image and class leak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from diffusion_adapters.registry import nearest

from .encoders import Encoder
from .metrics import (
    METRICS,
    Interval,
    Values,
    bootstrap,
    diversity,
    drift,
    fidelity,
    nearest_distance,
    prompt_accuracy,
    prompt_fidelity,
)
from .protocol import Protocol, Subject, Suite, load_protocol

__all__ = [
    "METRICS",
    "Encoder",
    "Interval",
    "Pictures",
    "Protocol",
    "Ruler",
    "Scores",
    "Subject",
    "Suite",
    "check_metrics",
    "load_protocol",
]

Draw = Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image]]
"""Prompts and as many seeds -> one picture for each pair."""


@dataclass
class Pictures:
    """What was drawn, by set: rows of prompts, columns of seeds; and how the encoders see it, (p, s, d)."""

    images: dict[str, list[list[Image.Image]]] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    """By the encoder of subjects."""
    whole: dict[str, Tensor] = field(default_factory=dict)
    """By the encoder of whole pictures: the one that reads text too, if there is one."""


@dataclass(frozen=True)
class Scores:
    """Values of each metric, (prompts, seeds)."""

    values: Mapping[str, Values]

    def interval(self, metric: str) -> Interval:
        """Mean and 95 % interval over prompts × seeds."""
        return bootstrap(self.values[metric])

    def as_json(self) -> dict[str, Any]:
        """Numbers for a JSON file; `from_json` reads them back."""
        return {name: {**vars(self.interval(name)), "values": values.tolist()} for name, values in self.values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scores:
        """Scores from `as_json`. Raises ValueError, KeyError or TypeError for anything else."""
        return cls({name: np.asarray(entry["values"], dtype=np.float64) for name, entry in data.items()})


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ValueError for a metric that does not exist."""
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}, {nearest(name, METRICS)}")


class Ruler:
    """Draws the pictures of a suite and reads the metrics off them."""

    def __init__(
        self,
        suite: Suite,
        subject: Sequence[Image.Image],
        image_encoder: Encoder,
        text_encoder: Encoder | None = None,
        metrics: Sequence[str] | None = None,
    ) -> None:
        """`subject`: its real pictures, at least one; `text_encoder`: a CLIP-like model. Raises ValueError."""
        if not subject:
            raise ValueError("there is no picture of the subject to compare with")
        if text_encoder is None and image_encoder.reads_text:
            text_encoder = image_encoder
        if text_encoder is not None and not text_encoder.reads_text:
            raise ValueError(f"text encoder {text_encoder.path} reads no text; give a CLIP model")
        check_metrics(metrics or ())
        for name in metrics or ():
            if name.startswith("prompt_") and text_encoder is None:
                read = f"{image_encoder.path} reads none"
                raise ValueError(
                    f"metric {name!r} compares with prompts, and {read}; give a text encoder, a CLIP model"
                )
        self.suite, self.metrics = suite, metrics
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.subject = image_encoder.images(subject)
        self.subject_whole = self._whole.images(subject)
        self.texts = text_encoder.texts(suite.texts) if text_encoder else None

    @property
    def _whole(self) -> Encoder:
        return self.text_encoder or self.image_encoder

    def draw(self, draw: Draw) -> Pictures:
        """Draw and encode every set of the suite with whatever is active now."""
        images, seeds = {}, self.suite.numbers()
        for name, prompts in self.suite.sets().items():
            flat = list(draw([p for p in prompts for _ in seeds], [s for _ in prompts for s in seeds]))
            images[name] = [flat[i : i + len(seeds)] for i in range(0, len(flat), len(seeds))]
        return self.encode(images)

    def encode(self, images: Mapping[str, list[list[Image.Image]]]) -> Pictures:
        """Pictures that were drawn before, by set, prompt and seed."""
        made = Pictures(dict(images))
        for name, rows in images.items():
            flat = [image for row in rows for image in row]
            for seen, encoder in ((made.seen, self.image_encoder), (made.whole, self._whole)):
                seen[name] = encoder.images(flat).unflatten(0, (len(rows), -1))
        return made

    @property
    def fingerprints(self) -> list[str]:
        """Of the encoders: scores with others are no scores of these."""
        return [encoder.fingerprint for encoder in (self.image_encoder, self.text_encoder) if encoder]

    def score(self, pictures: Pictures, base: Pictures | None = None) -> Scores:
        """Every metric that the pictures allow; `base`: the same suite with adapters off, for class leak and drift."""
        seen, whole = pictures.seen["subject"], pictures.whole["subject"]
        found = {"subject_fidelity": fidelity(seen, self.subject, self.suite.pairs)}
        if self.texts is not None:
            found["prompt_fidelity"] = prompt_fidelity(whole, self.texts)
            found["prompt_accuracy"] = prompt_accuracy(whole, self.texts)
        if base is not None and "class" in pictures.seen:
            now, before = (fidelity(made.seen["class"], self.subject) for made in (pictures, base))
            found["class_leak"] = now - before
        if base is not None and "unrelated" in pictures.whole:
            found["drift"] = drift(pictures.whole["unrelated"], base.whole["unrelated"])
        found["nearest_training_image"] = nearest_distance(whole, self.subject_whole)
        if self.suite.seeds > 1:
            found["diversity"] = diversity(whole)
        wanted = METRICS if self.metrics is None else self.metrics
        return Scores({name: found[name] for name in wanted if name in found})

    def ceiling(self) -> float:
        """Subject fidelity of the real pictures among themselves, each with the others: what can be hoped for."""
        count = len(self.subject)
        cosines = fidelity(self.subject[:, None], self.subject)[:, 0]
        return float("nan") if count < 2 else float(((cosines * count - 1) / (count - 1)).mean())
