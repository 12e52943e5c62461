"""The pictures of a run on the page: dropped in, looked at, captioned, masked, taken away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from train.data.options import SAMPLE_SUBJECT
from train.images import open_rgb
from ui.common import QUIET, App
from ui.pictures import MAX_BYTES, MAX_PICTURES, SUFFIXES, thumbnail
from ui.region import CANVAS, fitted, layer_of, strokes, tools
from ui.runs import Run, Runs

NONE = "Choose a picture above to caption or mask it."
BLANK = {"background": None, "layers": [], "composite": None}


@dataclass(frozen=True)
class After:
    """What else is updated when pictures made a run."""

    updates: Callable[[str], dict[Any, Any]]
    outputs: Sequence[Any]

    def __call__(self, name: str) -> dict[Any, Any]:
        return self.updates(name)


class Dataset:
    """Its parts, laid out where it is made. `run`: holds the name of the run; empty for a new one."""

    def __init__(self, app: App, runs: Runs, run: Any, name: Any) -> None:
        self.app, self.runs, self.run, self.name = app, runs, run, name
        self.drop = gr.File(
            label="Pictures of the subject", file_count="multiple", file_types=[*sorted(SUFFIXES), ".txt"], height=130,
            elem_classes="drop",
        )  # fmt: skip
        gr.Markdown(
            f"At most {MAX_PICTURES} of {MAX_BYTES // 2**20} MiB. `NAME.txt` beside `NAME.png` is its caption, "
            "`NAME.mask.png` its mask.", elem_classes="hint",
        )  # fmt: skip
        self.sample = gr.Button("Use the five pictures of the sample subject", size="sm")
        self.refused = gr.Markdown("", elem_classes="refused")
        self.gallery = gr.Gallery(
            label="Pictures of the run", show_label=False, format="png", type="pil", height="auto", columns=5,
            object_fit="cover", allow_preview=False, interactive=False, visible=False, elem_classes="pictures data",
        )  # fmt: skip
        self.chosen = gr.State("")
        with gr.Accordion("Caption and mask of a picture", open=False) as self.fold:
            self.title = gr.Markdown(NONE)
            self.caption = gr.Textbox(
                label="Caption", lines=2, max_lines=5, interactive=True, info="In place of the prompt of the pictures; "
                "[trigger] stands for the trigger word. Kept when you press Enter or leave the field.",
            )  # fmt: skip
            self.editor = gr.ImageEditor(
                label="Mask: paint where the subject is", type="pil", format="png", sources=(), transforms=(),
                layers=False, canvas_size=(CANVAS, CANVAS), interactive=True, buttons=[], height=CANVAS + 60,
                **tools(),
            )  # fmt: skip
            with gr.Row(elem_classes="tight"):
                self.keep = gr.Button("Keep the mask", size="sm", min_width=90)
                self.clear = gr.Button("Remove the mask", size="sm", min_width=90)
                self.remove = gr.Button("Remove the picture", size="sm", min_width=90, variant="stop")

    @property
    def parts(self) -> list[Any]:
        """What `show` updates."""
        return [self.gallery, self.refused, self.chosen, self.title, self.caption, self.editor]

    def show(self, run: Run | None, refused: Mapping[str, str] | None = None, chosen: str = "") -> dict[Any, Any]:
        """Updates to the pictures of a run, with what was refused just now."""
        listed = run.pictures.list() if run else []
        items = [(thumbnail(one.path), (one.caption or one.name) + " · masked" * one.masked) for one in listed]
        lines = "".join(f"- `{name}`: {self.app.plain(ValueError(why))}\n" for name, why in (refused or {}).items())
        picture = next((one for one in listed if one.name == chosen), None)
        updates = {
            self.gallery: gr.update(value=items, visible=bool(items)),
            self.refused: f"Not taken:\n{lines}" if lines else "",
            self.chosen: picture.name if picture else "",
            self.title: f"`{picture.name}`" if picture else NONE,
            self.caption: picture.caption if picture else "",
            self.editor: BLANK,
        }
        if run and picture:
            updates[self.editor] = _painted(picture.path, run.pictures.mask(picture.name))
        return updates

    def wire(self, after: After, masked: Any) -> None:
        """`after(run name)`: updates of the other parts when a run was made; `masked`: the switch of masked loss."""
        outputs = [*self.parts, self.drop, masked, *after.outputs]

        def add(files: list[str], name: str, new: str) -> dict[Any, Any]:
            with self.app.toasts():
                made = None if name else self.runs.create(new)
                run = made or self.runs.find(name)
                refused = run.pictures.add(Path(file) for file in files)
            any_mask = any(one.masked for one in run.pictures.list())
            updates = {**self.show(run, refused), self.drop: None, **({masked: True} if any_mask else {})}
            return updates | (after(run.name) if made else {})

        def sample(name: str, new: str) -> dict[Any, Any]:
            return add([str(path) for path in sorted(SAMPLE_SUBJECT.glob("*.png"))], name, new)

        def choose(name: str, event: gr.SelectData) -> dict[Any, Any]:
            with self.app.toasts():
                run = self.runs.find(name)
                listed = run.pictures.list()
                chosen = listed[event.index].name if event.index < len(listed) else ""
            return {**self.show(run, chosen=chosen), self.fold: gr.update(open=True)}

        def caption(name: str, chosen: str, text: str) -> Any:
            if not (name and chosen):
                return gr.skip()
            with self.app.toasts():
                run = self.runs.find(name)
                run.pictures.set_caption(chosen, text)
            return self.show(run)[self.gallery]

        def mask(name: str, chosen: str, value: dict[str, Any] | None) -> dict[Any, Any]:
            with self.app.toasts():
                run = self.runs.find(name)
                painted = strokes(value)
                if painted is None:
                    raise ValueError("nothing is painted: paint over the subject, then keep the mask")
                run.pictures.set_mask(chosen, painted)
            return {self.gallery: self.show(run)[self.gallery], masked: True}

        def clear(name: str, chosen: str) -> dict[Any, Any]:
            with self.app.toasts():
                run = self.runs.find(name)
                run.pictures.set_mask(chosen, None)
            still = any(one.masked for one in run.pictures.list())
            return {**self.show(run, chosen=chosen), masked: still}

        def remove(name: str, chosen: str) -> dict[Any, Any]:
            with self.app.toasts():
                run = self.runs.find(name)
                run.pictures.remove(chosen)
            return self.show(run)

        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        self.drop.upload(add, [self.drop, self.run, self.name], outputs, **private)
        self.sample.click(sample, [self.run, self.name], outputs, **private)
        self.gallery.select(choose, self.run, [*self.parts, self.fold], **private)
        gr.on(
            [self.caption.submit, self.caption.blur], caption, [self.run, self.chosen, self.caption], self.gallery,
            **QUIET,
        )  # fmt: skip
        self.keep.click(mask, [self.run, self.chosen, self.editor], [self.gallery, masked], **private)
        self.clear.click(clear, [self.run, self.chosen], [*self.parts, masked], **private)
        self.remove.click(remove, [self.run, self.chosen], self.parts, **private)


def _painted(path: Path, mask: Image.Image | None) -> dict[str, Any]:
    """The value of the editor: the picture, and over it what its mask has."""
    ground = open_rgb(path, CANVAS)
    canvas = fitted(ground.size, CANVAS)
    layers = [] if mask is None else [layer_of(mask, canvas)]
    return {"background": ground.resize(canvas), "layers": layers, "composite": None}
