"""What programs may ask of the library: /inspect, /upload, /rename, /annotate, /delete, /restore, /merge, /export, …"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from ui import blends, forge
from ui.common import GPU, App
from ui.entry import TRIGGER, Entry
from ui.programs import Programs
from ui.shelf import report_of

Weights = Annotated[dict[str, Any], "a mapping of names to weights"]
Options = Annotated[dict[str, Any] | None, "a mapping of options to values"]


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
        found = entry(name, base)
        return report_of(found, library.own is not None and library.own.holds(found.path))

    def upload(file: Annotated[str, "an adapter file"], name: str = "") -> dict[str, Any]:
        """Take an adapter file into the library once it is known to be one; what `/inspect` says of it."""
        return named(library.home.take(Path(file), name))

    def copy(name: str, new_name: str = "") -> dict[str, Any]:
        """Copy a file from where training left it into the library."""
        return named(library.home.take(entry(name).path, new_name or name))

    def rename(name: str, new_name: str) -> dict[str, Any]:
        """Give an adapter of the library another name."""
        return named(library.home.rename(entry(name), new_name))

    def annotate(name: str, notes: str | None = None, trigger: str | None = None) -> dict[str, Any]:
        """Keep notes and trigger words beside an adapter; null leaves what is there, empty text takes it away."""
        found = entry(name)
        given = {key: text or None for key, text in (("notes", notes), (TRIGGER, trigger)) if text is not None}
        library.home.annotate(found, **given)
        return named(found.path)

    def thumbnail(name: str, picture: str | None = None) -> dict[str, Any]:
        """Make a picture the thumbnail of an adapter; none takes its own away."""
        found = entry(name)
        library.home.picture(found, Path(picture) if picture else None)
        return named(found.path)

    def delete(name: str) -> str:
        """Put an adapter away; the label under which `/restore` brings it back."""
        return library.home.delete(entry(name))

    def restore(label: str) -> dict[str, Any]:
        """Bring an adapter back."""
        return named(library.home.restore(label))

    def download(name: str) -> str:
        """The file of an adapter."""
        return save_file_to_cache(entry(name).path, got.GRADIO_CACHE)

    def merge(weights: Weights, name: str, method: str = "linear", options: Options = None, base: str = "") -> str:
        """Merge adapters into a new one of the library; `options` are the method's own. With what error."""
        return blends.merge(studio, weights, name, method, options or {}, base)

    def export(weights: Weights, name: str = "", options: Options = None, base: str = "") -> tuple[list[str], str]:
        """One plain LoRA file, its options dialect, rank, energy and dtype; and with what error."""
        return forge.export(app, weights, name, base, options or {})

    def bake(weights: Weights, name: str, base: str = "") -> str:
        """Write the base with adapters in its weights into the library folder."""
        return blends.bake_in(studio, weights, name, base)

    def baked() -> list[str]:
        """The names of the bases that were baked into the library folder, the newest first."""
        return blends.baked(library.home)

    def download_baked(name: str) -> str:
        """A baked base as a ZIP of its folder, which diffusers loads once it is unpacked."""
        return forge.packed(app, name)

    programs, own = Programs(app), {"concurrency_id": "library", "concurrency_limit": 4}
    file = gr.File(label="an adapter file", type="filepath", visible=False)
    picture = gr.File(label="a picture", type="filepath", visible=False)
    got, many = gr.File(label="file", visible=False), gr.File(label="files", file_count="multiple", visible=False)
    for function in (inspect, copy, rename, annotate, restore):
        programs.add(function, "report", **own)
    programs.add(upload, "report", files={"file": file}, **own)
    programs.add(thumbnail, "report", files={"picture": picture}, **own)
    programs.add(delete, "label", **own)
    programs.add(baked, "names", **own)
    programs.add(download, got, **own)
    programs.add(download_baked, got, **{**forge.PACKING, "api_visibility": "public"})
    programs.add(merge, "with_what_error", **GPU)
    programs.add(export, many, "with_what_error", **GPU)
    programs.add(bake, "with_what_size", **GPU)
