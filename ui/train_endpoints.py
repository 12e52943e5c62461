"""What programs may ask for of trainings: /check, /train, /runs, /run, /stop, /resume, /delete_run, …"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import gradio as gr

from train import records
from ui.check import check
from ui.choices import BASE_FLAG, Choices, family_in
from ui.common import App
from ui.library import ERRORS
from ui.programs import Programs
from ui.progress import scores
from ui.runs import Run, Runs

Files = Annotated[list[str] | None, "pictures, and what lies beside them"]
Settings = Annotated[dict[str, Any] | None, "a mapping of options of the trainer to values"]


def build(app: App, runs: Runs, choices: Choices) -> None:
    """Add the endpoints to the open page."""

    def told(run: Run) -> dict[str, Any]:
        now = asdict(run.outcome())
        now["said"] = app.library.plain(ValueError(now["said"]))
        return {"name": run.name, **now, "place": runs.place(run), "pictures": len(run.pictures.list())}

    def values_of(settings: dict[str, Any] | None) -> dict[str, Any]:
        """The options of a run. Raises ValueError, TypeError, before anything is made."""
        given = settings or {}
        base = str(given.get(BASE_FLAG) or app.studio.first)
        values = {**choices.start(base, family_in(given)), **given}
        choices.toml(values, runs.folder / "none", runs.folder / "none")
        return values

    def taken(run: Run, files: list[str] | None) -> dict[str, str]:
        """Take pictures into a run: refused file -> reason."""
        refused = run.pictures.add(Path(file) for file in files or [])
        return {name: app.library.plain(ValueError(why)) for name, why in refused.items()}

    def list_runs() -> list[dict[str, Any]]:
        """The runs, the newest first: name, state, step, total, loss, left (h:mm:ss), said (why it ended), place in
        the queue, and number of pictures. `state` is draft, queued, starting, training, finishing, stopping, stopped,
        done, failed or killed."""
        return [told(run) for run in runs.list()]

    def one_run(name: str) -> dict[str, Any]:
        """A run as in /runs, with its `settings`, the `records` of its steps and the `scores` of its looks."""
        run = runs.find(name)
        settings = choices.read(run.settings) if run.settings.is_file() else {}
        more = {"settings": settings, "records": records.read(run.folder), "scores": scores(run.folder)}
        return {**told(run), **more}

    def train(name: str, files: Files = None, settings: Settings = None) -> dict[str, Any]:
        """Begin a run called `name` on pictures, with NAME.txt for the caption and NAME.mask.png for the mask of
        NAME.png; the answer is the run as in /runs, and `refused`: file name -> reason. `settings`: option of the
        trainer -> value, over those of /training_options."""
        values = values_of(settings)
        run = runs.create(name)
        refused = taken(run, files)
        try:
            runs.start(run.name, choices.toml(values, run.pictures.path, run.folder))
        except ERRORS:
            runs.remove(run.name)
            raise
        return {**told(run), "refused": refused}

    def check_run(name: str, files: Files = None, settings: Settings = None) -> dict[str, Any]:
        """What /train with the same arguments would make of them; nothing is kept. `pictures`: number of those taken;
        `refused`: file name -> reason; `why`: why the run itself would be refused, empty if it would not; `lines`:
        what is used, memory and time, for people; `steps` of the run, null if refused; `seconds_per_step` of three
        steps that were tried, null while another run trains."""
        answer: dict[str, Any] = {"pictures": 0, "refused": {}, "why": "", "lines": [], "steps": None}
        answer["seconds_per_step"] = None
        with tempfile.TemporaryDirectory(prefix="check-") as place:
            try:
                values = values_of(settings)
                run = Run(Path(place) / runs.free(name).name)
                answer["refused"] = taken(run, files)
                answer["pictures"] = len(run.pictures.list())
                for found in check(choices, runs, run, values):
                    answer |= {"steps": found.steps, "seconds_per_step": found.seconds_per_step}
                    answer["lines"] = app.library.plain(ValueError("\n".join(found.lines))).splitlines()
            except ERRORS as error:
                answer["why"] = app.library.plain(error)
        return answer

    def stop(name: str, now: bool = False) -> dict[str, Any]:
        """Finish the step, save and end; with `now`, end without saving. A run that waits leaves the queue."""
        return told(runs.stop(name, now))

    def resume(name: str, steps: int | None = None) -> dict[str, Any]:
        """Go on from the last checkpoint of a run, up to its number of steps or to `steps`."""
        return told(runs.resume(name, steps))

    def delete_run(name: str) -> None:
        """Delete a run with its pictures and everything that it made."""
        runs.remove(name)

    def training_options(base: str = "", adapter: str = "lora", preset: str = "") -> dict[str, Any]:
        """The options of the trainer that may be set, with the values that a run begins with."""
        return choices.start(base or app.studio.first, adapter, preset)

    programs = Programs(app)
    files = {"files": gr.File(label="pictures", file_count="multiple", visible=False)}
    programs.add(train, "run", files=files, concurrency_limit=1)
    programs.add(check_run, "found", name="check", files=files, concurrency_limit=2)
    programs.add(list_runs, "runs", name="runs")
    programs.add(one_run, "run", name="run")
    programs.add(stop, "run")
    programs.add(resume, "run")
    programs.add(delete_run, "nothing")
    programs.add(training_options, "options")
