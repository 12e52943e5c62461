"""Train: pictures dropped in, captions and masks, the trainer's options, and the run as it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ui import raw, train_endpoints
from ui.again import STEPS, Again
from ui.check import check, report
from ui.choices import Choices
from ui.common import QUIET, App
from ui.dataset import After, Dataset
from ui.form import Form
from ui.look import Found
from ui.option_controls import labels
from ui.outcome import ACTIVE, Outcome
from ui.progress import Progress, tried
from ui.runs import Run, Runs
from ui.words import worded

NEW = ("(new)", "")
EVERY = 2.0
"""Seconds between two looks at a run."""


def build(app: App) -> None:
    """Lay out the tab and wire it."""
    tab = Train(app)
    tab.lay_out()
    tab.wire()
    train_endpoints.build(app, tab.runs, tab.choices)


class Train:
    """The tab."""

    def __init__(self, app: App) -> None:
        self.app, self.choices = app, Choices(app.studio)
        self.runs = Runs(app.library.trainings, app.studio.give_back)
        app.studio.training = lambda: self.runs.busy
        if self.runs.busy:  # since before the app was opened
            app.studio.give_back()

    def lay_out(self) -> None:
        """Pictures and options on the left; what comes of them on the right."""
        with gr.Row(elem_classes="studio train"):
            with gr.Column(min_width=0, elem_classes="ask"):
                with gr.Row():
                    self.run = raw.Dropdown(
                        self.listed(), value="", label="Run", info="A new one, or one to look at.", interactive=True,
                        min_width=140,
                    )  # fmt: skip
                    self.name = gr.Textbox(
                        "my-subject", label="Name", info="Of the new adapter.", max_lines=1, interactive=True,
                        min_width=140, max_length=60,
                    )  # fmt: skip
                self.data = Dataset(self.app, self.runs, self.run, self.name)
            with gr.Column(min_width=0, elem_classes="results"):
                with gr.Row(elem_classes="tight"):
                    self.check = gr.Button("Check", min_width=90)
                    self.go = gr.Button("Train", variant="primary", min_width=110)
                    self.halt = gr.Button("Stop and save", min_width=110, interactive=False)
                    self.use = gr.Button("Try it in Create", min_width=120, visible=False)
                self.report = gr.Textbox(
                    label="Check", lines=4, max_lines=20, interactive=False, visible=False, elem_classes="report"
                )
                self.view = Progress(self.app, self.runs)
                self.again = Again()
            with gr.Column(min_width=0, elem_classes="mix"):
                self.form = Form(self.app, self.choices)
                self.preset = self.form.preset()
                self.form.build()
        self.timer = gr.Timer(EVERY, active=False)  # each tick has an editor of masks send all that is in it anew

    def wire(self) -> None:
        """What each control does."""
        page = gr.context.Context.root_block
        assert page is not None
        form, data, view, private = self.form, self.data, self.view, {"api_visibility": "private"}
        again = self.again
        state = [self.run, *view.parts, self.halt, self.go, self.use, *again.parts, self.timer]
        whole = [*state, self.name, *data.parts, *form.outputs, self.report]
        form.wire(self.preset)
        data.wire(After(self.opened, [*state, self.name]), form.parts["", "masked_loss"])
        page.load(self.recall, self.app.training, whole, **QUIET)
        self.run.blur(self.turn, [self.run, self.view.seen], whole, **QUIET)
        self.run.focus(lambda: gr.update(choices=self.listed()), None, self.run, **QUIET)
        self.timer.tick(self.tick, [self.run, view.seen], state, **QUIET)
        gr.on(
            [*(part.input for part in form.inputs), self.run.change], self.keep, [self.run, *form.inputs],
            self.app.training, trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        limits: dict[str, Any] = {"concurrency_limit": 2, "trigger_mode": "once", **private}
        self.check.click(self.checked, [self.run, *form.inputs], self.report, show_progress_on=self.report, **limits)
        self.go.click(self.start, [self.run, *form.inputs], state, **limits)
        self.halt.click(self.halted, self.run, state, **limits)
        again.resume.click(self.go_on, [self.run, again.steps], state, **limits)
        again.sure.click(self.deleted, self.run, [*whole, again.drop], **limits)
        self.use.click(self.try_it, self.run, [self.app.recipe, self.app.tabs], **private)

    def listed(self) -> list[tuple[str, str]]:
        """What the list of runs shows, and the name of each."""
        return [NEW, *((f"{run.name}, {run.outcome().state}", run.name) for run in self.runs.list())]

    def state(self, run: Run | None, seen: dict[str, Any]) -> dict[Any, Any]:
        """Updates of what depends on how far a run is."""
        now = run.outcome() if run else Outcome("draft")
        moving = now.state in (*ACTIVE, "queued")
        words = {"stopping": "Stop at once", "queued": "Leave the queue"}.get(now.state, "Stop and save")
        ready = bool(run and not moving and run.result.exists())
        return {
            self.run: gr.update(choices=self.listed(), value=run.name if run else ""),
            **dict(zip(self.view.parts, self.view.show(run, seen), strict=True)),
            self.halt: gr.update(value=words, interactive=moving),
            self.go: gr.update(interactive=not (run and (moving or run.trained))),
            self.use: gr.update(visible=ready, variant="primary"),
            **self.again.show(run, moving, now.total if run and seen.get("run") != run.name else 0),
            self.timer: gr.Timer(active=moving),
        }

    def found(self, name: str) -> Run | None:
        """A run by name; None for a new one, or one that is gone."""
        try:
            return self.runs.find(name) if name else None
        except ValueError:
            return None

    def given(self, name: str) -> Run:
        """The run to be trained. Raises ValueError."""
        if not name:
            raise ValueError("there are no pictures yet: drop some of the subject")
        return self.runs.find(name)

    def opened(self, name: str) -> dict[Any, Any]:
        """Updates when the run that is shown has changed."""
        run = self.found(name)
        updates = {self.name: gr.update(visible=run is None), self.again.sure: gr.update(visible=False)}
        return {**self.state(run, {}), **updates}

    def turn(self, name: str, seen: dict[str, Any]) -> dict[Any, Any]:
        """Updates that show another run: a list that is left unchanged tells so as well."""
        return {self.run: gr.skip()} if name == (seen.get("run") or "") else self.open(name)

    def open(self, name: str) -> dict[Any, Any]:
        """Updates that show a run with its pictures and its settings."""
        run, report = self.found(name), gr.update(value="", visible=False)
        updates = {**self.opened(name), **self.data.show(run), self.report: report}
        if run and run.settings.is_file():
            with self.app.toasts():
                updates |= self.form.show(self.choices.read(run.settings))
        return updates

    def recall(self, saved: dict[str, Any]) -> dict[Any, Any]:
        """The run that was looked at before a reload, and what was set but not yet started."""
        run = self.found(saved.get("run") or "")
        updates = self.open(run.name if run else "")
        if saved.get("values") and not (run and run.settings.is_file()):
            with contextlib.suppress(ValueError, TypeError, KeyError):  # of another version
                updates |= self.form.show(self.form.read(saved["values"]))
        return updates

    def tick(self, name: str, seen: dict[str, Any]) -> dict[Any, Any]:
        """What is new about the run that is shown, whoever started it."""
        run = self.found(name)
        updates = self.state(run, seen)
        updates[self.run] = gr.update(choices=self.listed())  # by now the page may show another
        nothing_new = run and updates[self.view.seen] == gr.skip()
        return {self.run: updates[self.run]} if nothing_new else updates

    def keep(self, name: str, *values: Any) -> dict[str, Any]:
        """For the browser to keep."""
        return {"run": name, "values": list(values)}

    def checked(self, name: str, *values: Any) -> Iterator[Any]:
        """The lines of the check."""

        def found() -> Iterator[Found]:
            yield from check(self.choices, self.runs, self.given(name), self.form.read(values))

        def say(error: BaseException) -> str:
            return worded(self.app.library.plain(error), labels())

        for text in report(found(), say):
            yield gr.update(value=text, visible=True)

    def start(self, name: str, *values: Any) -> dict[Any, Any]:
        """Train, or take a place in the queue."""
        with self.app.toasts(labels()):
            run, given = self.given(name), self.form.read(values)
            run = self.runs.start(name, self.choices.toml(given, run.pictures.path, run.folder))
        return self.state(run, {})

    def halted(self, name: str) -> dict[Any, Any]:
        """Finish the step and save; pressed again, end at once."""
        with self.app.toasts():
            run = self.runs.stop(name, now=self.runs.find(name).outcome().state == "stopping")
        return self.state(run, {})

    def go_on(self, name: str, steps: int | None) -> dict[Any, Any]:
        """Resume."""
        with self.app.toasts({"steps": STEPS}):
            return self.state(self.runs.resume(name, steps), {})

    def deleted(self, name: str) -> dict[Any, Any]:
        """Delete the run that is shown."""
        with self.app.toasts():
            self.runs.remove(name)
        return {**self.open(""), self.again.drop: gr.update(visible=True)}

    def try_it(self, name: str) -> tuple[Any, Any]:
        """Its adapter, with its prompt, in the Create tab."""
        with self.app.toasts():
            return tried(self.app, self.runs.find(name)).as_dict(), self.app.go("Create")
