"""The controls that make something of a blend: merge it into one adapter, export it as a plain LoRA, bake it in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from diffusion_adapters.cli.merge import method_options, method_title
from diffusion_adapters.dialects import DIALECTS
from diffusion_adapters.merge import MERGERS
from ui import blends
from ui.axes import numbers
from ui.common import GPU, QUIET, App
from ui.option_controls import control, read

DTYPES = ("fp32", "fp16", "bf16")
PACKING: dict[str, Any] = {"concurrency_id": "packing", "concurrency_limit": 1, "api_visibility": "private"}
"""Of the event that copies gigabytes: one at a time, and nobody else waits for it."""


class Forge:
    """The controls, laid out where they are made. `done` is what to call and show when the library has changed."""

    def __init__(self, app: App, base: gr.Dropdown) -> None:
        self.app, self.base = app, base
        self.names = gr.Dropdown(
            [], multiselect=True, label="Adapters to put together", interactive=True, info="Type to search."
        )
        self.weights = gr.Textbox(
            "", label="Their weights", info="Numbers in the same order, 1, 0.5 say. Empty: 1 each.", interactive=True
        )
        self.name = gr.Textbox("", label="Name of the result", info="It may not be taken.", interactive=True)
        self.said = gr.Markdown("", elem_classes="status", elem_id="forge-status")
        with gr.Tabs():
            with gr.Tab("Merge"):
                self._merge()
            with gr.Tab("Export"):
                self._export()
            with gr.Tab("Bake"):
                self._bake()

    def _merge(self) -> None:
        titles = [(f"{name}: {method_title(name)}", name) for name in MERGERS]
        self.method = gr.Dropdown(titles, value="linear", label="Method", info="How they become one.", interactive=True)
        self.options: dict[str, Any] = {}
        for name, (methods, _) in method_options().items():
            self.options[name] = control(MERGERS[methods[0]].Config, name, visible="linear" in methods)
        self.method.change(
            lambda method: [gr.update(visible=method in methods) for methods, _ in method_options().values()],
            self.method, list(self.options.values()), **QUIET,
        )  # fmt: skip
        self.merge = gr.Button("Merge into the library", variant="primary")

    def _export(self) -> None:
        self.dialect = gr.Dropdown(
            list(DIALECTS), value="diffusers", label="Dialect", info="Whose keys the file has.", interactive=True
        )
        self.dtype = gr.Dropdown(list(DTYPES), value="fp32", label="Numbers", info="Of the file.", interactive=True)
        rank = "Where what is not low rank is cut. Empty: 64, if no energy is given."
        self.rank = gr.Textbox("", label="Rank", info=rank, interactive=True)
        energy = "Share of the squared norm kept of what is not low rank, 0.99 say."
        self.energy = gr.Textbox("", label="Energy", info=energy, interactive=True)
        self.export = gr.Button("Export", variant="primary")
        self.files = gr.File(label="Exported files", interactive=False, file_count="multiple", visible=False)

    def _bake(self) -> None:
        gr.Markdown("Writes the whole base with the adapters in its weights into the library folder.")
        self.bake = gr.Button("Bake", variant="primary")
        self.baked = gr.Dropdown(
            [], value=None, label="Baked bases", info="In the library folder, the newest first.", interactive=True
        )
        self.pack = gr.Button("Pack for download")
        self.packed = gr.File(label="Packed base", interactive=False, visible=False)

    def wire(self, refresh: Callable[..., Any], given: Sequence[Any], lists: Sequence[Any]) -> None:
        """What the buttons do; afterwards `refresh(*given)` fills `lists`."""
        shared = [self.names, self.weights, self.name, self.base]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": self.said, **GPU}
        events = [
            self.merge.click(self._merged, [*shared, self.method, *self.options.values()], self.said, **private),
            self.bake.click(self._baked, shared, [self.said, self.baked], **private),
        ]
        for event in events:
            event.success(refresh, list(given), list(lists), **QUIET)
        exported = [*shared, self.dialect, self.rank, self.energy, self.dtype]
        self.export.click(self._exported, exported, [self.said, self.files], **private)
        self.pack.click(self._packed, self.baked, self.packed, show_progress_on=self.packed, **PACKING)

    def _merged(self, names: list[str], weights: str, name: str, base: str, method: str, *values: Any) -> str:
        with self.app.toasts():
            options = {}
            for value, (key, (methods, _)) in zip(values, method_options().items(), strict=True):
                given = read(MERGERS[methods[0]].Config, key, value)
                if method in methods and given is not None:
                    options[key] = given
            return blends.merge(self.app.studio, mix_of(names, weights), name, method, options, base)

    def _exported(
        self, names: list[str], weights: str, name: str, base: str, dialect: str, rank: str, energy: str, dtype: str
    ) -> tuple[str, Any]:
        with self.app.toasts():
            given = {"rank": next(iter(numbers(rank, "rank")), None), "dialect": dialect, "dtype": dtype}
            given["energy"] = next(iter(numbers(energy, "energy")), None)
            files, line = export(self.app, mix_of(names, weights), name, base, given)
            return line, gr.update(value=files, visible=True)

    def _baked(self, names: list[str], weights: str, name: str, base: str) -> tuple[str, Any]:
        with self.app.toasts():
            said = blends.bake_in(self.app.studio, mix_of(names, weights), name, base)
            return said, gr.update(choices=(found := self.bakes()), value=found[0])

    def _packed(self, name: str | None) -> Any:
        with self.app.toasts():
            return gr.update(value=packed(self.app, name), visible=True)

    def bakes(self) -> list[str]:
        """The names of the checkpoints in the library folder."""
        return blends.baked(self.app.library.home) if self.app.library.own else []


def export(app: App, weights: Mapping[str, Any], name: str, base: str, given: Mapping[str, Any]) -> tuple[Any, str]:
    """Files in gradio's cache, of where they are downloaded, and the line about them."""
    folder = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder()))
    files, line = blends.export(app.studio, weights, folder, name, base, **given)
    return [str(file) for file in files], line


def packed(app: App, name: str | None) -> str:
    """The ZIP of a baked base in gradio's cache, of where it is downloaded. Raises ValueError, OSError."""
    if not name:
        raise ValueError("choose a baked base, or bake one")
    source = blends.pack(app.library.home, name)
    file = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder())) / source.name
    try:
        os.link(source, file)  # it may have gigabytes
    except OSError:  # on another disk
        shutil.copyfile(source, file)
    return str(file)


def mix_of(names: Sequence[str], weights: str) -> dict[str, float]:
    """Adapters and their weights. Raises ValueError."""
    if not names:
        raise ValueError("choose the adapters")
    given = numbers(weights, "weights")
    if given and len(given) != len(names):
        raise ValueError(f"{len(given)} weights for {len(names)} adapters; give one each, or none")
    return dict(zip(names, map(float, given or [1.0] * len(names)), strict=True))
