"""What the ruler reads off encoded pictures, and how sure it is: arrays of (prompts, seeds), and intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]

METRICS = {
    "subject_fidelity": ("↑", "mean cosine with every picture of the subject (DINO, CLIP-I)"),
    "prompt_fidelity": ("↑", "cosine with the prompt, the rare word left out (CLIP-T)"),
    "prompt_accuracy": ("↑", "share of pictures whose own prompt is the nearest of all prompts (R-precision)"),
    "class_leak": ("↓", "what pictures of the class gain in subject fidelity over the base's from the same seed"),
    "drift": ("↓", "(1 - cosine) / 2 between base and adapted pictures of unrelated prompts, same seed"),
    "nearest_training_image": ("↑", "1 - cosine with the nearest picture of the subject: near 0 is a copy"),
    "diversity": ("↑", "1 - cosine between pictures of one prompt from different seeds"),
}
"""Metric -> (whether more is better, what it is)."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        mean, low, high = (round(value, 3) + 0.0 for value in (self.mean, self.low, self.high))  # no -0.000
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    def apart(self, other: Interval) -> bool:
        """Whether the two intervals do not overlap."""
        return self.low > other.high or other.low > self.high


def similarity(features: Tensor, others: Tensor) -> Values:
    """(..., d) and (k, d) -> cosines (..., k)."""
    from torchmetrics.functional import pairwise_cosine_similarity  # seconds, which only who measures waits for

    flat = pairwise_cosine_similarity(features.reshape(-1, features.shape[-1]).double(), others.double())
    return flat.reshape(*features.shape[:-1], len(others)).numpy()


def fidelity(features: Tensor, subject: Tensor, pairs: tuple[int | None, ...] | None = None) -> Values:
    """(p, s, d), (k, d) -> (p, s): the mean over the subject's pictures, or the one that belongs to the prompt."""
    cosines = similarity(features, subject)
    if pairs is None:
        return cosines.mean(-1)
    return np.stack([row.mean(-1) if k is None else row[:, k] for row, k in zip(cosines, pairs, strict=True)])


def prompt_fidelity(features: Tensor, texts: Tensor) -> Values:
    """(p, s, d), (p, d) -> (p, s): cosine of each picture with its own prompt."""
    cosines = similarity(features, texts)
    return np.stack([cosines[p, :, p] for p in range(len(texts))])


def prompt_accuracy(features: Tensor, texts: Tensor) -> Values:
    """(p, s, d), (p, d) -> (p, s): 1 where no other prompt of the set is nearer than the picture's own."""
    nearest = similarity(features, texts).argmax(-1)
    return (nearest == np.arange(len(texts))[:, None]).astype(np.float64)


def drift(features: Tensor, base: Tensor) -> Values:
    """(p, s, d) twice -> (p, s): (1 - cosine) / 2 of pictures from the same prompt and seed."""
    return ((1 - torch.cosine_similarity(features.double(), base.double(), dim=-1)) / 2).numpy()


def nearest_distance(features: Tensor, subject: Tensor) -> Values:
    """(p, s, d), (k, d) -> (p, s): 1 - the largest cosine."""
    return 1 - similarity(features, subject).max(-1)


def diversity(features: Tensor) -> Values:
    """(p, s, d) -> (p, s): mean of 1 - cosine with the other pictures of the same prompt; NaN for a single seed."""
    seeds = features.shape[1]
    if seeds < 2:
        return np.full(features.shape[:2], np.nan)
    cosines = np.stack([similarity(row, row) for row in features])
    return (seeds - cosines.sum(-1)) / (seeds - 1)


def bootstrap(values: Values, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean of `values` (..., prompts, seeds) and the interval of it when every axis is drawn anew.

    Prompts and seeds are crossed, every seed being used for every prompt: resampling single pictures would take them
    for independent and give intervals that are too narrow. Rows and columns are drawn instead (Owen 2007, The
    pigeonhole bootstrap, Annals of Applied Statistics 1:386), and so is every axis in front, such as subjects.
    """
    rng = np.random.default_rng(seed)
    means = np.broadcast_to(values, (resamples, *values.shape))
    for size in values.shape:  # how often each row of the axis is drawn, in place of the rows
        drawn = rng.multinomial(size, np.full(size, 1 / size), resamples)
        means = np.einsum("ra,ra...->r...", drawn, means) / size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))
