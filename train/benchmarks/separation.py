"""Does the ruler tell apart what it should? Base, under-trained, good, over-fitted and wrong subject, on held-out ones.

An under-trained adapter saw a sixth of the steps; an over-fitted one is a full fine-tuning at four times its rate for
twice the steps; the wrong subject is the good adapter of the next one. Two candidates are apart if the 95 % intervals
of some metric do not overlap; drift and class leak do not count beside the base, whose own are 0 by definition.
Pictures that were drawn before are measured again, not drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import ClassVar, TypeVar

from diffusion_adapters.options import Options, option
from train.benchmarks.workshop import Workshop, load_methods
from train.output import write
from train.ruler import Pictures, Scores, load_protocol
from train.ruler.report import as_markdown, write_report
from train.script import command, read_options

T = TypeVar("T")
BASE = "untrained base"
FROM_BASE = ("class_leak", "drift")
BySubject = dict[str, dict[str, T]]


@dataclass(frozen=True, kw_only=True)
class SeparationOptions(Options):
    title: ClassVar[str] = "separation"
    protocol: str = option("pocket", "name or TOML file of a protocol")
    data_dir: Path | None = option(None, "folder of the protocol's pictures, where it does not draw them")  # noqa: RUF009
    work_dir: Path = option(Path("runs/separation"), "folder of drawn subjects")  # noqa: RUF009
    method: str = option("full", "row of train/benchmarks/methods.toml that is trained")
    learning_rate: float | None = option(None, "its learning rate (default: the centre of its sweep)", gt=0)
    steps: int = option(200, "steps of the good adapter", ge=10)
    subjects: int = option(3, "how many subjects of the protocol", ge=2)
    output_dir: Path = option(Path("separation"), "folder for the reports")  # noqa: RUF009


def measure(options: SeparationOptions) -> tuple[Workshop, BySubject[Scores], BySubject[Pictures]]:
    """Scores and pictures by subject and candidate."""
    workshop = Workshop(load_protocol(options.protocol), options.work_dir, options.data_dir, options.steps)
    methods = load_methods()
    method, full = methods[options.method], methods["full"]
    rate = options.learning_rate or method.learning_rate
    subjects = workshop.protocol.subjects[: options.subjects]
    pictures: BySubject[Pictures] = {}
    for subject in subjects:
        made = {BASE: workshop.base_pictures(subject)}
        for label, (how, own_rate, steps) in {
            "under-trained": (method, rate, options.steps // 6),
            "good": (method, rate, options.steps),
            "over-fitted": (full, 4 * full.learning_rate, 2 * options.steps),
        }.items():
            key = f"{label}_{how.label}_{own_rate:.2g}_{steps}_{subject.name}"
            drawn = workshop.kept(subject, key)
            if drawn is None:
                facts, drawn = workshop.train_and_draw(how, own_rate, subject, 0, key, steps)
            if drawn is None:
                raise RuntimeError(f"{subject.name}, {label}: {facts['failed']}")
            made[label] = drawn
        pictures[subject.name] = made
    scores: BySubject[Scores] = {}
    for i, subject in enumerate(subjects):
        other = subjects[(i + 1) % len(subjects)]
        pictures[subject.name]["wrong subject"] = pictures[other.name]["good"]
        base = pictures[subject.name][BASE]
        ruler = workshop.ruler(subject)
        scores[subject.name] = {label: ruler.score(made, base) for label, made in pictures[subject.name].items()}
    return workshop, scores, pictures


def apart(rows: dict[str, Scores]) -> dict[tuple[str, str], list[str]]:
    """For each pair of candidates the metrics whose intervals do not overlap."""
    found = {}
    for a, b in combinations(rows, 2):
        counts = [name for name in rows[a].values if name in rows[b].values and not (a == BASE and name in FROM_BASE)]
        found[a, b] = [name for name in counts if rows[a].interval(name).apart(rows[b].interval(name))]
    return found


def write_results(
    options: SeparationOptions,
    workshop: Workshop,
    scores: BySubject[Scores],
    pictures: BySubject[Pictures],
) -> bool:
    """A report per subject and separation.md over all; returns whether every pair is apart on every subject."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    lines, complete = [], True
    for subject in workshop.protocol.subjects[: options.subjects]:
        rows = scores[subject.name]
        suite = workshop.protocol.suite_of(subject)
        facts = {"title": f"{subject.name}: {workshop.protocol.title}", "steps": options.steps}
        real = workshop.real_pictures(subject)
        folder = options.output_dir / subject.name
        folder.mkdir(exist_ok=True)
        write_report(folder, facts, real, rows, pictures[subject.name], suite.sets())
        lines += [f"### {subject.name}", "", as_markdown(rows)]
        lines += ["| pair | apart in |", "|---|---|"]
        for (a, b), metrics in apart(rows).items():
            complete = complete and bool(metrics)
            lines.append(f"| {a} · {b} | {', '.join(m.replace('_', ' ') for m in metrics) or '**nothing**'} |")
        lines.append("")
    text = "\n".join(lines)
    write(options.output_dir / "separation.md", lambda path: path.write_text(text, "utf-8"))
    return complete


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; 1 if a pair is not apart."""
    options = read_options(SeparationOptions, __doc__, "benchmark.py --separation", argv)
    complete = write_results(options, *measure(options))
    print((options.output_dir / "separation.md").read_text("utf-8"))
    return 0 if complete else 1
