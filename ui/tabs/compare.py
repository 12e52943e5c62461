"""Compare: grids over any two settings, and the blend map of two adapters; what is chosen there can be taken over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr

from ui import compare_endpoints
from ui.common import GPU, QUIET, SOON, App, paced
from ui.grid import Plan
from ui.history import Session, store
from ui.pick import JS, picked
from ui.plans import DRAW, GRID, Plans
from ui.recipe import KEY
from ui.refill import Refill
from ui.scores import Judge
from ui.sheet import Result
from ui.studio import StoppedError

HINT = "Choose a picture to see it large; choose another to slide from the one to the other."
TAKEN = "Create has this mix now."


class Compare:
    """The tab's parts and what happens to them."""

    def __init__(self, app: App) -> None:
        self.app, self.studio = app, app.studio
        self.session, self.result, self.chosen = gr.State(Session()), gr.State(None), gr.State([])
        self.begun = gr.State(0)
        """How often it was begun to draw."""
        self.last: WeakValueDictionary[str, Result] = WeakValueDictionary()
        """What each visitor saw last, as long as gradio keeps the state of a page that was left."""
        with gr.Row(elem_classes="studio"):
            with gr.Column(min_width=0, elem_classes="ask"):
                self.plans = Plans(app)
                self.plans.ask()
                with gr.Row():
                    self.go = gr.Button(DRAW[GRID], variant="primary", scale=2, min_width=120)
                    self.halt = gr.Button("Stop", scale=1, min_width=80)
            with gr.Column(min_width=0, elem_classes="results"):
                self.status = gr.Markdown("", elem_classes="status", elem_id="compare-status")
                self.table = gr.HTML("", js_on_load=JS, elem_id="sheet", label="Grid of pictures")
                large = {"height": 380, "format": "png", "type": "filepath", "interactive": False, "visible": False}
                self.slider = gr.ImageSlider(
                    label="Drag: chosen before | chosen now", max_height=380, elem_classes="large", **large
                )
                self.single = gr.Image(
                    label="Chosen picture", buttons=["download", "fullscreen"], elem_classes="large", **large
                )
                self.facts = gr.Markdown(HINT)
                with gr.Row():
                    self.take = gr.Button("Open in Create", interactive=False, min_width=120)
                    self.save = gr.DownloadButton("Download the grid", interactive=False, min_width=120)
            with gr.Column(min_width=0, elem_classes="mix"):
                self.plans.more()
        self.wire()

    def wire(self) -> None:
        """What happens when."""
        page = gr.context.Context.root_block
        assert page is not None
        self.plans.wire(self.go)
        Refill(self.app, self.plans).wire(page)
        given = [self.session, self.app.visitor, *self.plans.inputs]
        outputs = [self.table, self.status, self.result, self.save, self.slider, self.single, self.facts, self.chosen]
        outputs.append(self.take)
        pressed = self.begun.change(
            self.make, given, outputs, trigger_mode="multiple", show_progress_on=self.status, api_visibility="private",
            **GPU,
        )  # fmt: skip
        self.go.click(self.begin, [self.session, self.begun], self.begun, cancels=[pressed], **SOON)
        stopped = [self.table, self.status, self.save]
        page.load(self.reload, self.app.visitor, [*stopped, self.result], **SOON)
        self.halt.click(self.halted, [self.session, self.result], stopped, cancels=[pressed], **QUIET)
        shown = [self.slider, self.single, self.facts, self.chosen, self.take, self.app.recipe]
        self.table.click(self.choose, [self.result, self.chosen], shown, **SOON)
        self.take.click(self.open, [self.result, self.chosen], [self.app.recipe, self.app.tabs], **SOON)
        compare_endpoints.build(self.app, self.draw)

    def begin(self, session: Session, count: int) -> int:
        """Draw, in place of what is drawn or waits to be."""
        session.request.end()
        return count + 1

    def make(
        self, session: Session, visitor: str, *values: Any, progress: gr.Progress = gr.Progress()  # noqa: B008
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """The table after each picture; the sheet at the end."""
        check = session.request.take()
        with self.app.toasts(self.plans.labels):
            plan, subject = self.plans.read(values)
            clear = [gr.update(value=None, visible=False)] * 2 + [HINT, [], gr.update(interactive=False)]
            end, result, often = "Done.", None, paced()
            try:
                for result in self.draw(plan, subject, check, progress):
                    if visitor:
                        self.last[visitor] = result
                    if not often():
                        continue
                    count = f"{len(result.pictures)} of {len(result.cells)} pictures"
                    yield result.table(), count, result, gr.update(value=None, interactive=False), *clear
                    clear = [gr.skip()] * 5
            except StoppedError:
                end = "Stopped."
            if result is None:
                return
            table, told, file = self.end(result, end)
            yield table, told, result, file, *clear

    def end(self, result: Result, word: str) -> tuple[Any, ...]:
        """The table, a line about it, and the sheet to keep."""
        file = store(result.sheet(), self.single.GRADIO_CACHE)
        told = f"{word} {len(result.pictures)} of {len(result.cells)} pictures."
        return result.table(), told, gr.update(value=file, interactive=True)

    def halted(self, session: Session, result: Result | None) -> tuple[Any, ...]:
        """Stop, and show what there is: a page that leaves the queue is told nothing more by what it waited for."""
        session.end()
        if result is None:
            return gr.skip(), "Stopped.", gr.skip()
        return self.end(replace(result, pictures={**result.pictures}, scores={**result.scores}), "Stopped.")

    def reload(self, visitor: str) -> tuple[Any, ...]:
        """What was drawn last before the page was loaded anew."""
        result = self.last.get(visitor)
        return (gr.skip(),) * 4 if result is None else (*self.end(result, "Drawn before:"), result)

    def draw(self, plan: Plan, subject: list[Path], check: Any, progress: Any) -> Iterator[Result]:
        """The result as it grows: before the first picture, and after each."""
        base = self.studio.base(plan.request.base)
        result = Result(plan, plan.cells(self.app.library, base))
        judge = Judge(subject, base) if subject else None
        yield result
        often = paced()
        for index, cell in enumerate(result.cells):

            def on_step(done: int, total: int, before: int = index) -> None:
                check()
                if often():
                    progress((before * total + done, len(result.cells) * total), unit="steps")

            ((_, picture),) = self.studio.make(cell.request, cell.mix, on_step=on_step)
            result.pictures[index] = picture
            if judge is not None:
                result.scores[index] = judge.score(picture, cell.request.prompt)
            yield result

    def choose(self, result: Result | None, chosen: list[int], event: gr.EventData) -> tuple[Any, ...]:
        """Show a picture large; beside the one chosen before, if there is one. On a blend map take its mix as well."""
        pick = picked(event)
        index = int(pick) if pick.isdecimal() else -1
        if result is None or index not in result.pictures:
            return (gr.skip(),) * 6
        before, now = chosen[-1:], result.pictures[index]
        files = [store(result.pictures[number], self.single.GRADIO_CACHE) for number in (*before, index)]
        pair = len(files) == 2 and before != [index]
        views = gr.update(value=files if pair else None, visible=pair), gr.update(value=files[-1], visible=not pair)
        facts = result.cells[index].label
        if pair:
            facts = f"{result.cells[before[0]].label} | {facts}"
        taken = json.loads(now.info[KEY]) if result.plan.blend else gr.skip()
        if result.plan.blend:
            facts = f"{facts}. {TAKEN}"
        return *views, facts, [index], gr.update(interactive=True), taken

    def open(self, result: Result, chosen: list[int]) -> tuple[Any, Any]:
        """Hand the chosen picture's recipe to the Create tab, and open it."""
        return json.loads(result.pictures[chosen[-1]].info[KEY]), self.app.go("Create")


def build(app: App) -> None:
    """Lay out the tab and wire it."""
    Compare(app)
