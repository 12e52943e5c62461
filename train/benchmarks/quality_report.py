"""What the comparison leaves: a table with intervals, every number as JSON, curves and Pareto plot, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from train.benchmarks.cells import Result
from train.benchmarks.quality import Comparison, key_of, merit
from train.output import write
from train.report import FAINT, GAP, INK, LINE, MARGIN, PAPER, fit, font
from train.ruler import METRICS, Interval, Scores
from train.ruler.metrics import Values, bootstrap
from train.ruler.report import from_sheet

Curves = Mapping[str, Mapping[float, float]]
Results = Mapping[str, Sequence[Sequence[Result]]]
CLOSE = 0.9
"""A learning rate within this share of the best merit counts as good."""


def stacked(results: Sequence[Sequence[Result]], metric: str) -> Values:
    """(subjects, trainings, prompts, seeds)."""
    return np.stack([[Scores.from_json(one["scores"]).values[metric] for one in row] for row in results])


def intervals(results: Sequence[Sequence[Result]]) -> dict[str, Interval]:
    """Every metric's mean and interval over subjects, trainings, prompts and seeds."""
    return {name: bootstrap(stacked(results, name)) for name in METRICS if name in results[0][0]["scores"]}


def merit_values(results: Sequence[Sequence[Result]], bases: Sequence[Result]) -> Values:
    """(subjects, trainings)."""
    return np.array([[merit(one, base) for one in row] for row, base in zip(results, bases, strict=True)])


def merits(results: Sequence[Sequence[Result]], bases: Sequence[Result]) -> Interval:
    """Merit over subjects and trainings."""
    return bootstrap(merit_values(results, bases))


def table(comparison: Comparison, curves: Curves, results: Results) -> str:
    """Markdown: a row per method, the base first."""
    bases = [comparison.base(subject) for subject in comparison.subjects]
    rows = {"base": intervals([[base] for base in bases])}
    rows |= {label: intervals(own) for label, own in results.items()}
    shown = [name for name in METRICS if name in next(iter(rows.values())) or name in list(rows.values())[-1]]
    first = next(iter(results))
    head = ["method", "trained", "file KiB", "learning rate", "good rates", "CPU s", "merit", f"merit beside {first}"]
    head += [f"{name.replace('_', ' ')} {METRICS[name][0]}" for name in shown]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for label, row in rows.items():
        cells = [label, "0", "", "", "", "", "", ""]
        if label in results:
            flat = [one for per_subject in results[label] for one in per_subject]
            curve = curves[label]
            best = max(curve, key=curve.__getitem__)
            good = sum(value >= CLOSE * curve[best] for value in curve.values())
            seconds = np.mean([one["cpu_seconds"] for one in flat])
            cells = [label, f"{flat[0]['trained']:,}", f"{flat[0]['bytes'] / 1024:.0f}", f"{best:.2g}"]
            cells += [f"{good} of {len(curve)}", f"{seconds:.0f}", str(merits(results[label], bases))]
            beside = merit_values(results[label], bases) - merit_values(results[first], bases)
            cells.append(str(bootstrap(beside)) if label != first else "")
        cells += [str(row[name]) if name in row else "" for name in shown]
        lines.append(f"| {' | '.join(cells)} |")
    ceiling = np.mean([base["ceiling"] for base in bases])
    steps, count = comparison.workshop.options.max_train_steps, len(comparison.subjects)
    over = f"{count} subjects × {comparison.options.train_seeds} trainings × prompts × seeds; {steps} steps each"
    lines += ["", f"Means and 95 % bootstrap intervals over {over}. The real pictures among themselves: {ceiling:.3f}."]
    lines[-1] += (
        f" Beside {first}: the difference on the same subject, paired; it counts where its interval leaves out 0."
    )
    return "\n".join(lines) + "\n"


def plot(curves: Curves, results: Results, bases: Sequence[Result], path: Path) -> None:
    """Merit by learning rate; subject against prompt fidelity; merit against the number of trained values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    prompt = "prompt_fidelity" if "prompt_fidelity" in next(iter(results.values()))[0][0]["scores"] else "diversity"
    for i, (label, own) in enumerate(results.items()):
        colour = f"C{i}"
        rates = sorted(curves[label])
        left.plot(
            rates, [max(curves[label][rate], -0.2) for rate in rates], "o-", color=colour, label=label, markersize=4
        )
        row = intervals(own)
        x, y, m = row[prompt], row["subject_fidelity"], merits(own, bases)
        middle.errorbar(x.mean, y.mean, [[y.mean - y.low], [y.high - y.mean]], [[x.mean - x.low], [x.high - x.mean]],
                        fmt="o", color=colour, label=label, capsize=2, linewidth=1)  # fmt: skip
        right.errorbar(own[0][0]["trained"], m.mean, [[m.mean - m.low], [m.high - m.mean]], fmt="o", color=colour,
                       capsize=2, linewidth=1)  # fmt: skip
        right.annotate(label, (own[0][0]["trained"], m.mean), xytext=(5, 4), textcoords="offset points", fontsize=8)
    start = bootstrap(stacked([[base] for base in bases], "subject_fidelity"))
    middle.axhline(start.mean, color="0.5", linestyle=":", linewidth=1, label="the base's fidelity")
    left.set(xscale="log", xlabel="learning rate", ylabel="merit", title="sweep, on subjects kept for it")
    middle.set(xlabel=prompt.replace("_", " "), ylabel="subject fidelity", title="what is learned, and what is kept")
    right.set(xscale="log", xlabel="trained numbers", ylabel="merit", title="merit by size")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    middle.legend(fontsize=7)
    left.legend(fontsize=7)
    figure.savefig(path, format="png", dpi=110)


def gallery(comparison: Comparison, curves: Curves, scale: int = 2) -> Image.Image:
    """The strips of the first subject and seed: the base, then every method."""
    subject = comparison.subjects[0]
    keys = {"base": f"base_{subject.name}"}
    for method in comparison.methods:
        best = max(curves[method.label], key=curves[method.label].__getitem__)
        keys[method.label] = key_of(method, best, subject, 0)
    strips = {}
    for label, key in keys.items():
        path = comparison.work_dir / "pictures" / f"{key}.png"
        if path.is_file():
            with Image.open(path) as image:
                rows = from_sheet(image.convert("RGB"), comparison.workshop.ruler(subject).suite)
            strips[label] = [fit(row[0], scale * row[0].width) for own in rows.values() for row in own]
    real = sorted(comparison.workshop.folders[subject.name][1].glob("*.png"))
    cell = next(iter(strips.values()))[0].height
    width = 2 * MARGIN + max(len(strip) for strip in strips.values()) * cell
    sheet = Image.new("RGB", (width, 2 * MARGIN + (len(strips) + 1) * (LINE + cell + GAP)), PAPER)
    pen, y = ImageDraw.Draw(sheet), MARGIN
    pen.text((MARGIN, y), f"{subject.name}, trained on", FAINT, font(14))
    for i, path in enumerate(real[: width // cell]):
        with Image.open(path) as image:
            sheet.paste(fit(image, cell), (MARGIN + i * (cell + GAP), y + LINE))
    for label, strip in strips.items():
        y += LINE + cell + GAP
        pen.text((MARGIN, y), label, INK, font(14))
        for i, image in enumerate(strip):
            sheet.paste(image, (MARGIN + i * cell, y + LINE))
    return sheet


def write_results(comparison: Comparison, curves: Curves, results: Results, folder: Path) -> list[Path]:
    """quality.md, quality.json, quality.png and pictures.png in `folder`, each whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    bases = {subject.name: comparison.base(subject) for subject in comparison.subjects}
    text = table(comparison, curves, results)
    data: dict[str, Any] = {"curves": {k: {str(r): v for r, v in c.items()} for k, c in curves.items()}}
    data |= {"base": bases, "results": results}
    pictures = gallery(comparison, curves)
    return [
        write(folder / "quality.md", lambda path: path.write_text(text, "utf-8")),
        write(folder / "quality.json", lambda path: path.write_text(json.dumps(_rounded(data)) + "\n", "utf-8")),
        write(folder / "quality.png", lambda path: plot(curves, results, list(bases.values()), path)),
        write(folder / "pictures.png", lambda path: pictures.save(path, "PNG")),
    ]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
