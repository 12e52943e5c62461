"""What the ruler leaves: numbers as JSON and Markdown, and one picture of rows, pictures and intervals."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from train.output import write
from train.report import FAINT, GAP, INK, LINE, MARGIN, PAPER, fit, font, shortened

from . import METRICS, Pictures, Scores, Suite
from .tiles import cut, join

CELL = 96


def as_markdown(rows: Mapping[str, Scores]) -> str:
    """One row per candidate, one column per metric: mean and 95 % interval."""
    metrics = [name for name in METRICS if any(name in scores.values for scores in rows.values())]
    head = " | ".join(f"{name.replace('_', ' ')} {METRICS[name][0]}" for name in metrics)
    lines = [f"| | {head} |", "|---" * (len(metrics) + 1) + "|"]
    for label, scores in rows.items():
        cells = [str(scores.interval(name)) if name in scores.values else "" for name in metrics]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_report(
    folder: Path,
    settings: Mapping[str, Any],
    subject: Sequence[Image.Image],
    rows: Mapping[str, Scores],
    pictures: Mapping[str, Pictures],
    prompts: Mapping[str, Sequence[str]],
) -> list[Path]:
    """Write scores.json, scores.md and report.png; each is whole or absent. Returns their paths."""
    data = {"settings": dict(settings), "rows": {label: scores.as_json() for label, scores in rows.items()}}
    text = json.dumps(data, indent=1, ensure_ascii=False)
    meaning = "".join(f"- **{name.replace('_', ' ')}** {METRICS[name][0]}: {METRICS[name][1]}\n" for name in METRICS)
    page = f"{as_markdown(rows)}\nMeans, and 95 % bootstrap intervals over prompts × seeds.\n\n{meaning}"
    page_image = poster(str(settings.get("title", "")), subject, rows, pictures, prompts)
    return [
        write(folder / "scores.json", lambda path: path.write_text(text, "utf-8")),
        write(folder / "scores.md", lambda path: path.write_text(page, "utf-8")),
        write(folder / "report.png", lambda path: page_image.save(path, "PNG")),
    ]


def poster(
    title: str,
    subject: Sequence[Image.Image],
    rows: Mapping[str, Scores],
    pictures: Mapping[str, Pictures],
    prompts: Mapping[str, Sequence[str]],
) -> Image.Image:
    """The subject; a strip per candidate with a picture of each prompt, then of class and unrelated ones; intervals."""
    plot = forest(rows)
    columns = [(name, p) for name, texts in prompts.items() for p in range(len(texts))]
    gaps = len(prompts) - 1
    width = 2 * MARGIN + max(len(columns) * (CELL + GAP) + gaps * 3 * GAP, plot.width)
    height = 2 * MARGIN + 2 * LINE + (CELL + GAP) + 2 * LINE + len(rows) * (LINE + CELL + GAP) + LINE + plot.height
    whole = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(whole)
    pen.text((MARGIN, MARGIN), title, INK, font(18))
    y = MARGIN + LINE
    pen.text((MARGIN, y + 4), "the subject", FAINT, font(14))
    for i, image in enumerate(subject[: (width - 2 * MARGIN) // (CELL + GAP)]):
        whole.paste(fit(image, CELL), (MARGIN + i * (CELL + GAP), y + LINE))
    y += LINE + CELL + 2 * GAP
    places = {}
    x, before = MARGIN, columns[0][0]
    for name, p in columns:
        x += 3 * GAP if name != before else 0
        before, places[name, p] = name, x
        caption = prompts[name][p]
        for line, part in enumerate(_wrapped(caption, 3)):
            pen.text((x, y + 11 * line), shortened(part, CELL, 10), FAINT, font(10))
        x += CELL + GAP
    y += 11 * 3 + GAP
    for label in rows:
        pen.text((MARGIN, y), label, INK, font(16))
        for (name, p), x in places.items():
            if name in pictures[label].images:
                whole.paste(fit(pictures[label].images[name][p][0], CELL), (x, y + LINE))
        y += LINE + CELL + GAP
    whole.paste(plot, (MARGIN, y + LINE // 2))
    return whole.crop((0, 0, width, y + LINE // 2 + plot.height + MARGIN))


def sheet(pictures: Pictures) -> Image.Image:
    """All pictures at their own size: a row per prompt of any set, a column per seed."""
    return join([row for own in pictures.images.values() for row in own])


def from_sheet(whole: Image.Image, suite: Suite) -> dict[str, list[list[Image.Image]]]:
    """The pictures of `sheet`, by set, prompt and seed."""
    sets, count = suite.sets(), sum(map(len, suite.sets().values()))
    rows = iter(cut(whole, count, suite.seeds))
    return {name: [next(rows) for _ in prompts] for name, prompts in sets.items()}


def forest(rows: Mapping[str, Scores]) -> Image.Image:
    """Mean and interval of every metric and candidate, a panel per metric."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [name for name in METRICS if any(name in scores.values for scores in rows.values())]
    figure = Figure(figsize=(2.1 * len(metrics), 0.8 + 0.28 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    labels = list(rows)
    for k, (axes, name) in enumerate(zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True)):
        for i, label in enumerate(labels):
            if name in rows[label].values:
                one = rows[label].interval(name)
                axes.plot([one.low, one.high], [i, i], color="tab:blue", linewidth=2, alpha=0.6)
                axes.plot(one.mean, i, "o", color="tab:blue", markersize=4)
        axes.set_title(f"{name.replace('_', ' ')} {METRICS[name][0]}", fontsize=8)
        axes.set(ylim=(len(labels) - 0.5, -0.5), yticks=range(len(labels)))
        axes.set_yticklabels(labels if k == 0 else [], fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer).convert("RGB")


def _wrapped(text: str, lines: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 20, max_lines=lines, placeholder=" …")
