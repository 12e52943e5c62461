"""Pictures of a run: the grid of before and after, and the plot of its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

MARGIN, GAP, LINE = 16, 6, 24
INK, FAINT, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


Row = tuple[str, Sequence[Image.Image], Sequence[Image.Image]]


def grid(training: Sequence[Image.Image], rows: Sequence[Row], title: str) -> Image.Image:
    """Training pictures on top; below, per prompt, the base's pictures on the left and the adapter's on the right."""
    side = rows[0][1][0].width if rows else training[0].width
    cell = side * max(1, 192 // side) if side <= 192 else 256
    seeds = max((len(before) for _, before, _ in rows), default=0)
    half = seeds * (cell + GAP) - GAP
    top = list(training[: max(5, (2 * half + 3 * GAP) // (cell + GAP))])
    width = 2 * MARGIN + max(2 * half + 4 * GAP, len(top) * (cell + GAP) - GAP, 24 * LINE)
    height = 2 * MARGIN + 2 * LINE + cell + len(rows) * (LINE + cell + GAP) + (2 * LINE if rows else 0)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)

    def put(images: Sequence[Image.Image], x: int, y: int) -> None:
        for i, image in enumerate(images):
            sheet.paste(fit(image, cell), (x + i * (cell + GAP), y))

    pen.text((MARGIN, MARGIN), title, INK, font(18))
    y = MARGIN + LINE
    pen.text((MARGIN, y + 4), "trained on", FAINT, font(14))
    put(top, MARGIN, y + LINE)
    y += LINE + cell + LINE
    right = MARGIN + half + 4 * GAP
    if rows:
        pen.text((MARGIN, y), "before: the base", FAINT, font(14))
        pen.text((right, y), "after: with the adapter, same seeds", FAINT, font(14))
        y += LINE - 4
    for prompt, before, after in rows:
        pen.text((MARGIN, y), shortened(prompt, width - 2 * MARGIN), INK, font(16))
        put(before, MARGIN, y + LINE)
        put(after, right, y + LINE)
        y += LINE + cell + GAP
    return sheet


def strip(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size edge to edge, without a word: rows as given."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * max(len(row) for row in rows), height * len(rows)), PAPER)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image.convert("RGB"), (x * width, y * height))
    return sheet


def fit(image: Image.Image, cell: int) -> Image.Image:
    """A square of `cell` pixels with the whole picture in it; small ones keep their pixels visible."""
    how = Image.Resampling.NEAREST if image.width < cell else Image.Resampling.LANCZOS
    return ImageOps.pad(image.convert("RGB"), (cell, cell), how, PAPER)


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The built-in typeface at `size` pixels."""
    return ImageFont.load_default(size=size)


def shortened(text: str, width: int, size: int = 16) -> str:
    """`text`, cut off where it would be wider than `width` pixels."""
    while text and font(size).getlength(text) > width:
        text = text[:-4] + "…" if len(text) > 4 else ""
    return text


def loss_plot(records: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss per step, its running mean, and the learning rate, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    window = max(1, len(losses) // 20)
    mean = [sum(losses[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(losses))]
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(steps, losses, ".", color="0.75", markersize=3, label="loss of a step")
    axes.plot(steps, mean, color="tab:blue", label=f"mean of {window} steps")
    axes.set(xlabel="optimizer step", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [r["lr"] for r in records], color="tab:orange", linewidth=1, label="learning rate (right)")
    rates.set(ylim=(0, None))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    handles = [handle for ax in (axes, rates) for handle in ax.get_lines()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(path, format="png", dpi=110)


def picture_path(folder: Path, step: int) -> Path:
    """Where the pictures of a look are kept: rows of prompts and weights, columns of seeds."""
    return folder / "validation" / f"step-{step:06d}.png"


def pilot_sheet(
    rows: Sequence[Mapping[str, Any]], pick: int, metrics: Sequence[str], pictures: Mapping[int, Path]
) -> Image.Image:
    """Scores over steps with the pick marked, and below the pictures of each look (the first of `rows` is the base)."""
    plot = _scores(rows, pick, metrics)
    strips = {step: Image.open(path).convert("RGB") for step, path in pictures.items() if path.is_file()}
    strips = {step: _flat(image, plot.width - 2 * MARGIN) for step, image in strips.items()}
    height = plot.height + MARGIN + sum(LINE + image.height + GAP for image in strips.values())
    sheet = Image.new("RGB", (plot.width, height), PAPER)
    sheet.paste(plot, (0, 0))
    pen, y = ImageDraw.Draw(sheet), plot.height
    for row in rows:
        if row["step"] in strips:
            said = "  ".join(f"{name.replace('_', ' ')} {row[name]:.3f}" for name in metrics)
            mark = "   <- picked" if row["step"] == pick else ""
            pen.text((MARGIN, y), f"step {row['step']}:  {said}{mark}", INK if mark else FAINT, font(14))
            sheet.paste(strips[row["step"]], (MARGIN, y + LINE))
            y += LINE + strips[row["step"]].height + GAP
    return sheet


def _flat(image: Image.Image, width: int) -> Image.Image:
    """At most `width` wide and 200 high."""
    scale = min(width / image.width, 200 / image.height)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), how)


def _scores(rows: Sequence[Mapping[str, Any]], pick: int, metrics: Sequence[str]) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, len(metrics))
    for name, one in zip(metrics, axes, strict=True):
        one.plot([row["step"] for row in rows], [row[name] for row in rows], ".-", color="tab:blue")
        one.plot(pick, next(row[name] for row in rows if row["step"] == pick), "o", color="tab:orange", markersize=9)
        one.axhline(rows[0][name], color="0.75", linewidth=1)
        one.set(title=name.replace("_", " "), xlabel="optimizer step")
        one.grid(alpha=0.3)
    figure.suptitle(f"orange: the pick, step {pick}; grey: the base", fontsize=9)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
