"""A run as it goes: where it is, the plot of its loss, samples, scores, log; and its adapter, to be tried."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from train import records
from train.pilot import AXES
from ui.common import App
from ui.option_controls import labels
from ui.outcome import LAUNCHER, last_log
from ui.recipe import Recipe
from ui.request import Dial, Request
from ui.runs import Run, Runs
from ui.words import worded

POINTS = 300
"""Steps that a plot shows; of more, means of neighbours."""
SMOOTH = 5
"""Steps of the running mean, at least."""
SAMPLES = 5
LINES = 60
SIGNS = {"done": "✓", "failed": "✗", "killed": "✗"}
EMPTY: dict[str, list[Any]] = {"step": [], "loss": [], "line": []}
Seen = dict[str, Any]


class Progress:
    """Its parts, laid out where it is made."""

    def __init__(self, app: App, runs: Runs) -> None:
        self.app, self.runs = app, runs
        self.status = gr.Markdown("", elem_classes="status")
        self.plot = gr.LinePlot(
            pd.DataFrame(EMPTY), x="step", y="loss", color="line", height=260, label="Loss", show_label=False,
            x_title="step", y_title="loss", color_title=" ", visible=False,
            color_map={"each step": "#a5b4fc", "mean": "#4f46e5"},
        )  # fmt: skip
        self.samples = gr.Gallery(
            label="Samples", format="png", type="pil", height="auto", columns=3, object_fit="contain", visible=False,
            interactive=False, allow_preview=True, buttons=["fullscreen"], elem_classes="samples",
        )  # fmt: skip
        self.scores = gr.Dataframe(
            headers=["step", *(name.replace("_", " ") for name in AXES), "pick"], label="Scores of each look",
            interactive=False, visible=False, wrap=True,
        )  # fmt: skip
        with gr.Accordion("Log", open=False):
            self.log = gr.Textbox(
                label="Log", show_label=False, container=False, lines=8, max_lines=16, interactive=False,
                autoscroll=True, elem_classes="log",
            )  # fmt: skip
        self.seen = gr.State({})
        self.parts = [self.status, self.plot, self.samples, self.scores, self.log, self.seen]

    def show(self, run: Run | None, seen: Seen) -> list[Any]:
        """Updates of `parts`; what has not changed since `seen` stays as it is."""
        if run is None:
            hidden = gr.update(visible=False)
            return [self.line(None), hidden, hidden, hidden, "", {}]
        folder = run.folder
        pictures = _pictures(folder)
        stamps = {
            "status": self.line(run), "plot": _stamp(folder / records.FILE), "scores": _stamp(folder / "pilot.json"),
            "samples": [(path.name, _stamp(path)) for path in pictures], "log": _stamp(run.log),
        }  # fmt: skip
        makers = {
            "status": lambda: stamps["status"], "plot": lambda: _plot(folder),
            "samples": lambda: _gallery(pictures), "scores": lambda: _scores(folder),
            "log": lambda: self.log_text(run),
        }  # fmt: skip
        now = {"run": run.name, **stamps}
        same = seen.get("run") == run.name
        updates = [gr.skip() if same and seen.get(k) == now[k] else make() for k, make in makers.items()]
        return [*updates, gr.skip() if now == seen else now]

    def line(self, run: Run | None) -> str:
        """Where a run is, in one line of Markdown."""
        if run is None:
            return "Drop pictures of a subject, look the settings over, and press Train."
        now = run.outcome()
        if now.state == "draft":
            return f"**{run.name}** has {len(run.pictures.list())} pictures and was not started yet."
        words = [f"{SIGNS.get(now.state, '')} **{run.name}**: {now.state}".strip()]
        if place := self.runs.place(run):
            words[0] += f", place {place} in the queue"
        if now.total:
            words.append(f"step {now.step} of {now.total}")
        words += [f"loss {now.loss:.4f}"] if now.loss is not None else []
        words += [now.left] if now.left else []
        said = f"\n\n{worded(self.app.plain(ValueError(now.said)), labels())}" if now.said else ""
        return " · ".join(words) + said

    def log_text(self, run: Run) -> str:
        """The end of its log, without folders of this computer."""
        text = LAUNCHER.sub("", last_log(run.log, int(run.state.get("log_from") or 0)))
        text = "\n".join(text.splitlines()[-LINES:]).replace(str(self.runs.folder.resolve()) + "/", "")
        return self.app.library.plain(ValueError(text))


def tried(app: App, run: Run) -> Recipe:
    """A request with the adapter of a run. Raises ValueError if it has none, or the library refuses it."""
    base = app.studio.base(app.studio.first)
    entry = next((e for e in app.library.scan(base) if e.path.resolve() == run.result.resolve()), None)
    if entry is None:
        raise ValueError(f"{run.name} has no adapter in the library")
    entry = app.library.find(entry.name, base)
    guidance = app.studio.traits().guidance or 1.0
    request = Request(prompt=entry.trigger, base=base.name, guidance_scale=guidance)
    return Recipe(request, {entry.name: Dial()}, {entry.name: entry.digest})


def loss_table(history: Sequence[dict[str, float]]) -> pd.DataFrame:
    """Columns step, loss, line: the loss of each step, or of few neighbours, and its running mean."""
    steps, losses = [record["step"] for record in history], pd.Series([record["loss"] for record in history])
    smooth = losses.rolling(max(SMOOTH, len(losses) // 20), min_periods=1).mean()
    table = pd.DataFrame({"step": steps, "each step": losses, "mean": smooth})
    every = -(-len(table) // POINTS) or 1
    table = table.groupby(table.index // every).mean() if every > 1 else table
    return table.melt("step", var_name="line", value_name="loss")


def scores(folder: Path) -> list[dict[str, Any]]:
    """The looks of the pilot, each with whether it is the pick."""
    try:
        found = json.loads((folder / "pilot.json").read_text("utf-8"))
        rows = [{"step": int(row["step"]), **{name: float(row[name]) for name in AXES}} for row in found["rows"]]
        return [{**row, "pick": row["step"] == found["pick"]} for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _plot(folder: Path) -> Any:
    history = records.read(folder)
    return gr.update(value=loss_table(history), visible=True) if history else gr.update(visible=False)


def _scores(folder: Path) -> Any:
    rows = [[row["step"], *(f"{row[name]:.3f}" for name in AXES), "●" if row["pick"] else ""] for row in scores(folder)]
    return gr.update(value=rows, visible=bool(rows))


def _pictures(folder: Path) -> list[Path]:
    """The pictures of before and after, and those of the looks, the newest first."""
    looks = sorted(folder.glob("validation/step-*.png"), reverse=True)[:SAMPLES]
    return [path for path in (folder / "grid.png", *looks) if path.is_file()]


def _gallery(paths: Sequence[Path]) -> Any:
    shown = []
    for path in paths:
        try:
            with Image.open(path) as image:
                image.load()
        except OSError:  # it is being written anew
            continue
        step = path.stem.removeprefix("step-").lstrip("0")
        shown.append((image, "before and after" if path.stem == "grid" else f"step {step}"))
    return gr.update(value=shown, visible=bool(shown))


def _stamp(path: Path) -> Any:
    try:
        status = path.stat()
        return [status.st_mtime_ns, status.st_size]
    except OSError:
        return None
