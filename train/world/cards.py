"""What every model card is made of: rows of the log as tables and plots, checksums, sections, a filled template."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ENCODERS = ("encoder/", "clip/")
"""Subfolders of the pipeline's folder that are no part of the pipeline."""


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of each weight file, by its path inside the folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_log(path: Path) -> list[dict]:
    """Rows of a log.jsonl; a last line cut by an interruption is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def sums_table(folder: Path) -> str:
    """The checksums as a Markdown table."""
    lines = [f"| `{name}` | `{digest}` |" for name, digest in checksums(folder).items()]
    return "\n".join(["| file | sha256 |", "|---|---|", *lines])


def fill(template: str, values: dict[str, object]) -> str:
    """Put values where the template has their names in braces."""
    for name, value in values.items():
        template = template.replace("{" + name + "}", str(value))
    return template


def set_section(card: str, title: str, body: str) -> str:
    """The card with another text under its heading `## title`."""
    head, mark, rest = card.partition(f"\n## {title}\n")
    if not mark:
        raise ValueError(f"the model card has no section '## {title}'")
    _, following, tail = rest.partition("\n## ")
    return f"{head}{mark}\n{body}\n{following}{tail}"


def plot_run(rows: list[dict], path: Path, titles: dict[str, str]) -> None:
    """Loss curves of stages, side by side; `titles` by stage."""
    figure, axes = plt.subplots(1, len(titles), figsize=(4.5 * len(titles), 3), constrained_layout=True, squeeze=False)
    for axis, (stage, title) in zip(axes[0], titles.items(), strict=True):
        chosen = {row["step"]: row["loss"] for row in rows if row["stage"] == stage}
        axis.plot(list(chosen), list(chosen.values()), linewidth=1)
        axis.set(title=title, xlabel="optimizer step", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def stage_times(rows: list[dict], stages: tuple[str, ...]) -> str:
    """A Markdown table of stages: last step, last loss, CPU minutes (restarts added up)."""
    lines = ["| stage | steps | last loss | CPU minutes |", "|---|---|---|---|"]
    for stage in stages:
        chosen = [row for row in rows if row["stage"] == stage]
        spent = last = 0.0
        for row in chosen:  # the clock of a process restarts at zero
            spent += row["cpu_seconds"] - last if row["cpu_seconds"] >= last else row["cpu_seconds"]
            last = row["cpu_seconds"]
        if chosen:
            end = chosen[-1]
            steps, loss = end.get("step", ""), f"{end['loss']:.4f}" if "loss" in end else ""
            lines.append(f"| {stage} | {steps} | {loss} | {spent / 60:.1f} |")
    return "\n".join(lines)
