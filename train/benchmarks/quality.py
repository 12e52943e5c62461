"""The comparison of families by what they learn: each at its own best learning rate, on the same subjects and steps.

First a sweep per method over learning rates on subjects that are kept for it, longer where the best is at an end; then
every method at its best rate on the other subjects with several seeds. Every finished cell is a file: an interrupted
run goes on where it was, and a second process may work from the other end (--reverse).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from diffusion_adapters.options import Options, option
from diffusion_adapters.registry import nearest
from train.benchmarks.cells import Cells, Result
from train.benchmarks.workshop import Method, Workshop, load_methods
from train.ruler import Scores, Subject, load_protocol
from train.script import command, read_options

LOG = logging.getLogger("train")
FACTOR = 10**0.375
"""Between two rates of the sweep: five of them span a decade and a half."""
HALF = 2
"""Rates on either side of the centre."""
FURTHEST = 3
"""Steps by which the sweep may be extended at an end."""


@dataclass(frozen=True, kw_only=True)
class QualityOptions(Options):
    title: ClassVar[str] = "quality"
    protocol: str = option("pocket", "name or TOML file of a protocol")
    data_dir: Path | None = option(None, "folder of the protocol's pictures, where it does not draw them")  # noqa: RUF009
    work_dir: Path | None = option(None, "folder of finished cells (default: runs/quality/PROTOCOL)")  # noqa: RUF009
    methods: tuple[str, ...] | None = option(None, "rows of train/benchmarks/methods.toml (default: all)")
    steps: int | None = option(None, "optimizer steps of every cell (default: the protocol's or base's)", ge=1)
    tuning_subjects: int = option(1, "last subjects of the protocol, used for the sweep alone", ge=1)
    subjects: int | None = option(None, "how many of the other subjects (default: all)", ge=1)
    seeds: int | None = option(None, "pictures of each prompt (default: the protocol's)", ge=1)
    train_seeds: int = option(3, "trainings of each method on each subject", ge=1)
    output_dir: Path = option(Path("quality"), "folder for quality.md, .json and .png")  # noqa: RUF009
    threads: int = option(1, "CPU threads; more than one stalls on a busy machine", ge=1)
    reverse: bool = option(False, "take the cells from the other end, beside a process that does not")


def grid(method: Method, low: int, high: int) -> list[float]:
    """Learning rates around the method's centre, from `low` to `high` steps of FACTOR, two digits each."""
    return [float(f"{method.learning_rate * FACTOR**step:.2g}") for step in range(low, high + 1)]


def key_of(method: Method, rate: float, subject: Subject, seed: int) -> str:
    """File name of a cell."""
    return f"{method.label}_{rate:.2g}_{subject.name}_{seed}"


def merit(result: Result, base: Result) -> float:
    """What a learning rate is chosen by: (F - F base) / (F real - F base) × prompt accuracy.

    F is subject fidelity: 0 is the base, 1 as alike as the real pictures are among themselves. Without prompts to
    compare with, the gain alone.
    """
    if "failed" in result:
        return -math.inf
    start = Scores.from_json(base["scores"]).values["subject_fidelity"].mean()
    values = Scores.from_json(result["scores"]).values
    gain = (values["subject_fidelity"].mean() - start) / (base["ceiling"] - start)
    return float(gain * values["prompt_accuracy"].mean() if "prompt_accuracy" in values else gain)


class Comparison:
    """The cells of a protocol: which there are, and what comes of them."""

    def __init__(self, options: QualityOptions) -> None:
        """Raises ValueError or FileNotFoundError before anything is measured."""
        torch.set_num_threads(options.threads)
        self.options = options
        protocol = load_protocol(options.protocol)
        if options.seeds is not None:
            protocol = dataclasses.replace(protocol, seeds=options.seeds)
        known = load_methods()
        for label in options.methods or ():
            if label not in known:
                raise ValueError(f"--methods: unknown method {label!r}, {nearest(label, known)}")
        self.methods = [known[label] for label in options.methods or known]
        split = max(len(protocol.subjects) - options.tuning_subjects, 0)
        self.tuning = protocol.subjects[split:]
        self.subjects = (protocol.subjects[:split] or protocol.subjects)[: options.subjects]
        self.work_dir = options.work_dir or Path("runs/quality") / Path(options.protocol).stem
        self.workshop = Workshop(protocol, self.work_dir, options.data_dir, options.steps)
        settings = {"protocol": protocol.title, "steps": self.workshop.options.max_train_steps}
        settings |= {"batch": self.workshop.options.train_batch_size, "seeds": protocol.seeds}
        self.cells = Cells(self.work_dir / "cells", settings)

    def base(self, subject: Subject) -> Result:
        """The base on a subject; measured again if the encoders are others."""
        key = f"base_{subject.name}"
        known = self.cells.get(key)
        if known is not None and self.workshop.outdated(known, subject):
            self.cells.put(key, self.workshop.base_cell(subject, key))
        return self.cells.fill(key, lambda: self.workshop.base_cell(subject, key))

    def cell(self, method: Method, rate: float, subject: Subject, seed: int) -> Result:
        """One training: taken from its file, scored again if the encoders are others, or measured."""
        key = key_of(method, rate, subject, seed)
        result = self.cells.get(key)
        if result is None:
            result = self.workshop.cell(method, rate, subject, seed, key)
        elif self.workshop.outdated(result, subject):
            result = self.workshop.score_again(result, subject, key)
        else:
            return result
        self.cells.put(key, result)
        said = result.get("failed") or f"{result['cpu_seconds']:.0f} CPU s"
        LOG.info(f"{key}: merit {merit(result, self.base(subject)):.3f}, {said}")
        return result

    def _ordered(self, cells: Sequence[Any]) -> Iterator[Any]:
        return reversed(cells) if self.options.reverse else iter(cells)

    def merits(self, method: Method, rates: Sequence[float]) -> dict[float, float]:
        """Rate -> merit in the sweep: the mean over the tuning subjects; a training that broke down has none."""
        means = {}
        for rate in rates:
            own = [merit(self.cell(method, rate, subject, 0), self.base(subject)) for subject in self.tuning]
            means[rate] = float(np.mean(own))
        return means

    def sweep(self) -> dict[str, dict[float, float]]:
        """Every method's curve: merit by learning rate, extended while the best is at an end."""
        first = [(m, rate, s) for m in self.methods for s in self.tuning for rate in grid(m, -HALF, HALF)]
        for method, rate, subject in self._ordered(first):
            self.cell(method, rate, subject, 0)
        curves = {}
        for method in self._ordered(self.methods):
            low, high = -HALF, HALF
            while True:
                curve = self.merits(method, grid(method, low, high))
                best = max(curve, key=curve.__getitem__)
                if best == max(curve) and high < HALF + FURTHEST:
                    high += 1
                elif best == min(curve) and low > -HALF - FURTHEST:
                    low -= 1
                else:
                    break
            curves[method.label] = curve
        return {method.label: curves[method.label] for method in self.methods}

    def run(self) -> tuple[dict[str, dict[float, float]], dict[str, list[list[Result]]]]:
        """The curves, and for every method its results by subject and seed at the best rate."""
        curves = self.sweep()
        best = {label: max(curve, key=curve.__getitem__) for label, curve in curves.items()}
        seeds = range(self.options.train_seeds)
        plan = [(m, best[m.label], s, seed) for seed in seeds for s in self.subjects for m in self.methods]
        for method, rate, subject, seed in self._ordered(plan):
            self.cell(method, rate, subject, seed)
        finished = {
            m.label: [[self.cell(m, best[m.label], s, seed) for seed in seeds] for s in self.subjects]
            for m in self.methods
        }
        return curves, finished


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the results."""
    from train.benchmarks.quality_report import write_results

    comparison = Comparison(read_options(QualityOptions, __doc__, "benchmark.py --quality", argv))
    curves, results = comparison.run()
    for path in write_results(comparison, curves, results, comparison.options.output_dir):
        print(path)
