"""Create: a prompt, adapters with their weights, pictures; each beside what the base makes of the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from ui import endpoints
from ui.cards import Cards, mix_of
from ui.common import GPU, QUIET, App, hint, paced
from ui.controls import Controls
from ui.history import Session, store
from ui.memory import Memory
from ui.request import Dial, Request, called_up
from ui.studio import StoppedError
from ui.view import View
from ui.words import worded

PREVIEW_STEPS = 6


class Create:
    """The tab's parts and what happens to them."""

    def __init__(self, app: App) -> None:
        self.app, self.studio = app, app.studio
        self.session = gr.State(Session())
        self.controls = controls = Controls(app)
        with gr.Row(elem_classes="studio"):
            with gr.Column(min_width=0, elem_classes="ask"):
                controls.ask()
                with gr.Row():
                    self.go = gr.Button("Generate", variant="primary", scale=2, min_width=120)
                    self.halt = gr.Button("Stop", scale=1, min_width=80)
            with gr.Column(min_width=0, elem_classes="results"):
                self.view = View()
                with gr.Row():
                    self.live = gr.Checkbox(
                        self.studio.traits().quick, label="Live preview", min_width=160, interactive=True,
                        info="Each change of a weight draws a rough picture at once.",
                    )  # fmt: skip
                    self.compare = gr.Checkbox(
                        False, label="Compare with the base", min_width=160, interactive=True,
                        info="Also make each picture without adapters, and show both.",
                    )  # fmt: skip
                self.view.gallery()
            with gr.Column(min_width=0, elem_classes="mix"):
                deck = gr.Column(min_width=0)
                with gr.Accordion("Settings", open=True):
                    controls.settings()
                with gr.Accordion("Base, sampler, size", open=False):
                    controls.model()
                with gr.Accordion("Draw from a picture", open=False):
                    controls.source()
                with gr.Accordion("Take up a picture's recipe", open=False):
                    self.drop = gr.File(
                        label="A PNG that was made here", file_types=[".png"], type="filepath", height=120
                    )
                    hint("All that it was made with is put into the controls: prompt, seed, adapters, base.")
        fields = controls.fields
        with deck:
            self.cards = Cards(app, self.session, fields["prompt"], fields["base"], self.view.shots)
            self.cards.draw(fields["width"], fields["height"])
        self.flags = [controls.lock, self.live, self.compare]
        self.asked = [*controls.inputs, controls.image, self.cards.rack, self.cards.dials, *self.flags]
        self.memory = Memory(app, controls, self.cards, self.view, self.flags)
        self.wire()

    def wire(self) -> None:
        """What happens when."""
        cards, view, fields = self.cards, self.view, self.controls.fields
        given = [self.session, self.app.visitor, *self.asked]
        pressed = gr.on(
            [self.go.click, fields["prompt"].submit], self.make, given, [*view.parts, fields["seed"], view.status],
            trigger_mode="once", show_progress_on=view.single, api_visibility="private", **GPU,
        )  # fmt: skip
        moved = [cards.again.change, cards.dials.change, fields["guidance_scale"].release, fields["strength"].release]
        previewed = gr.on(
            moved, self.preview, given, [view.slider, view.single, view.status], trigger_mode="always_last",
            show_progress="hidden", api_visibility="private", **GPU,
        )  # fmt: skip
        stopped = [self.session, self.app.visitor, view.shots]
        self.halt.click(self.halted, stopped, [*view.parts, view.status], cancels=[pressed, previewed], **QUIET)
        page = gr.context.Context.root_block
        assert page is not None
        self.memory.wire(page, self.asked, self.drop)
        endpoints.build(self.app)

    def read(self, asked: Sequence[Any]) -> tuple[Request, dict[str, Dial], Any, dict[str, Any]]:
        """Request, adapters, source picture and the rest, from the values of `asked`."""
        count = len(self.controls.fields)
        request = self.controls.read(asked[:count])
        image, rack, dials, *flags = asked[count:]
        return request, mix_of(rack or [], dials), image, dict(zip(("lock", "live", "compare"), flags, strict=True))

    def make(
        self,
        session: Session,
        visitor: str,
        *asked: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, ...]]:
        """The outputs after pictures, as often as a page bears it, and once more at the end."""
        session.preview.end()
        check, shots, count, end = session.request.take(), None, 0, "Done."
        folder = self.view.single.GRADIO_CACHE
        with self.app.toasts(self.controls.labels):
            request, mix, image, flags = self.read(asked)
            if not flags["lock"]:
                request = replace(request, seed=random.randrange(2**32))

            stepped, made = paced(), paced()

            def on_step(done: int, total: int) -> None:
                check()
                if stepped():
                    progress((done, total), unit="steps")

            def outputs(word: str) -> tuple[Any, ...]:
                shown = [gr.skip()] * len(self.view.parts) if shots is None else self.view.show(shots)
                return *shown, request.seed, f"{word} {tell(request, mix, count)}"

            try:
                for pair in self.studio.make(request, mix, image=image, compare=flags["compare"], on_step=on_step):
                    shots, count = self.memory.pictures.add(visitor, pair, folder), count + 1
                    session.previewed = rough(request), mix, image
                    if made():
                        yield outputs("Working.")
            except StoppedError:
                end = "Stopped."
            yield outputs(end)

    def halted(self, session: Session, visitor: str, shots: list[Any]) -> tuple[Any, ...]:
        """Stop, and show what is new: a page that leaves the queue is told nothing more by what it waited for."""
        session.end()
        now = self.memory.pictures.of(visitor)
        return *(self.view.show(now) if now != shots else [gr.skip()] * len(self.view.parts)), "Stopped."

    def preview(self, session: Session, visitor: str, *asked: Any) -> tuple[Any, ...]:
        """A rough picture of what is set."""
        check = session.preview.take()
        try:
            request, mix, image, flags = self.read(asked)
            if not flags["live"]:
                return (gr.skip(),) * 3
            if session.previewed == (seen := (rough(request), mix, image)):  # no rough picture in place of a finished
                return (gr.skip(),) * 3
            few = replace(seen[0], seed=request.seed)
            ((_, picture),) = self.studio.make(few, mix, image=image, on_step=lambda done, total: check())
            session.previewed = seen
            file = store(picture, self.view.single.GRADIO_CACHE)
            return *self.view.preview(file), f"Preview of {few.steps} steps. Generate draws it with {request.steps}."
        except StoppedError:
            return (gr.skip(),) * 3
        except Exception as error:  # a preview is not asked for, and no reason to interrupt
            return gr.skip(), gr.skip(), worded(self.app.plain(error), self.controls.labels)


def rough(request: Request) -> Request:
    """A request as a preview draws it, but for the seed: the next picture may have another anyway."""
    return replace(request, steps=min(request.steps, PREVIEW_STEPS), num_images=1, seed=0)


def tell(request: Request, mix: Mapping[str, Dial], count: int) -> str:
    """One line about what was made, by cards and by tags, whose weights multiply those of the cards."""
    _, used = called_up(request.prompt, mix)
    weights = [f"`{name}` × {dial.weight * factor:g}" for name, (dial, factor) in used.items()]
    what = ", ".join(weights) or "the base alone"
    return f"{count} of {request.num_images} · {what} · seed {request.seed} · {request.steps} steps"


def build(app: App) -> None:
    """Lay out the tab and wire it."""
    Create(app)
