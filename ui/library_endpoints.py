"""What programs may ask of the library: /inspect, /upload, /rename, /annotate, /delete, /restore, /merge, /export, …"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from ui import blends, forge
from ui.common import GPU, App
from ui.entry import TRIGGER, Entry
from ui.shelf import report_of


def build(app: App) -> None:
    """Add the endpoints to the open page."""
    library, studio = app.library, app.studio

    def entry(name: str, base: str = "") -> Entry:
        return library.known(name, studio.base(base))

    def named(path: Path, base: str = "") -> dict[str, Any]:
        found = next(e for e in library.scan(studio.base(base)) if e.path == path)
        return report_of(found, library.home.holds(path))

    def inspect(name: str, base: str = "") -> dict[str, Any]:
        """What the doctor says of an adapter of the library, for a base; its notes, and why it is refused."""
        with app.toasts():
            found = entry(name, base)
            return report_of(found, library.own is not None and library.own.holds(found.path))

    def upload(file: str, name: str) -> dict[str, Any]:
        """Take an adapter file into the library once it is known to be one; what `/inspect` says of it."""
        with app.toasts():
            if not file:
                raise ValueError("there is no file")
            return named(library.home.take(Path(file), name))

    def copy(name: str, new_name: str = "") -> dict[str, Any]:
        """Copy a file from where training left it into the library."""
        with app.toasts():
            return named(library.home.take(entry(name).path, new_name or name))

    def rename(name: str, new_name: str) -> dict[str, Any]:
        """Give an adapter of the library another name."""
        with app.toasts():
            return named(library.home.rename(entry(name), new_name))

    def annotate(name: str, notes: str | None = None, trigger: str | None = None) -> dict[str, Any]:
        """Keep notes and trigger words beside an adapter; null leaves what is there, empty text takes it away."""
        with app.toasts():
            found = entry(name)
            given = {key: text or None for key, text in (("notes", notes), (TRIGGER, trigger)) if text is not None}
            library.home.annotate(found, **given)
            return named(found.path)

    def thumbnail(name: str, picture: str | None) -> dict[str, Any]:
        """Make a picture the thumbnail of an adapter; none takes its own away."""
        with app.toasts():
            found = entry(name)
            library.home.picture(found, Path(picture) if picture else None)
            return named(found.path)

    def delete(name: str) -> str:
        """Put an adapter away; the label under which `/restore` brings it back."""
        with app.toasts():
            return library.home.delete(entry(name))

    def restore(label: str) -> dict[str, Any]:
        """Bring an adapter back."""
        with app.toasts():
            return named(library.home.restore(label))

    def download(name: str) -> str:
        """The file of an adapter."""
        with app.toasts():
            return save_file_to_cache(entry(name).path, got.GRADIO_CACHE)

    def merge(weights: dict[str, float], name: str, method: str, options: dict[str, Any] | None, base: str) -> str:
        """Merge adapters into a new one of the library; `options` are the method's own. With what error."""
        with app.toasts():
            return blends.merge(studio, weights or {}, name, method, options or {}, base)

    def export(weights: dict[str, float], name: str, options: dict[str, Any] | None, base: str) -> tuple[Any, str]:
        """One plain LoRA file, its options dialect, rank, energy and dtype; and with what error."""
        with app.toasts():
            return forge.export(app, weights or {}, name, base, options or {})

    def bake(weights: dict[str, float], name: str, base: str) -> str:
        """Write the base with adapters in its weights into the library folder."""
        with app.toasts():
            return blends.bake_in(studio, weights or {}, name, base)

    def baked() -> list[str]:
        """The names of the bases that were baked into the library folder, the newest first."""
        with app.toasts():
            return blends.baked(library.home)

    def download_baked(name: str) -> str:
        """A baked base as a ZIP of its folder, which diffusers loads once it is unpacked."""
        with app.toasts():
            return forge.packed(app, name)

    for function in (inspect, copy, rename, annotate, delete, restore, baked):
        gr.api(function, concurrency_id="library", concurrency_limit=4)
    hidden, own = gr.Button(visible=False), {"concurrency_id": "library", "concurrency_limit": 4}
    text = {label: gr.Textbox(label=label, visible=False) for label in ("name", "method", "base")}
    file = gr.File(label="file", type="filepath", visible=False)
    picture = gr.File(label="picture", type="filepath", visible=False)
    got, many = gr.File(label="file", visible=False), gr.File(label="files", file_count="multiple", visible=False)
    found, line = gr.JSON(label="report", visible=False), gr.Textbox(label="with what error", visible=False)
    weights, options = (gr.JSON(label=label, visible=False) for label in ("weights", "options"))
    hidden.click(upload, [file, text["name"]], found, api_name="upload", **own)
    hidden.click(thumbnail, [text["name"], picture], found, api_name="thumbnail", **own)
    hidden.click(download, text["name"], got, api_name="download", **own)
    packing = {**forge.PACKING, "api_visibility": "public"}
    hidden.click(download_baked, text["name"], got, api_name="download_baked", **packing)
    hidden.click(merge, [weights, text["name"], text["method"], options, text["base"]], line, api_name="merge", **GPU)
    hidden.click(export, [weights, text["name"], options, text["base"]], [many, line], api_name="export", **GPU)
    hidden.click(bake, [weights, text["name"], text["base"]], line, api_name="bake", **GPU)
