"""Library: search it, look into its files, name and annotate them, take new ones in, and make new ones of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from ui import library_endpoints, shelf
from ui.common import QUIET, SOON, App
from ui.entry import TRIGGER, Entry
from ui.forge import Forge
from ui.pick import JS, picked

CHOOSE = "Choose an adapter to see what the doctor says of it."
OUTSIDE = "This file lies outside the library's own folder. Copy it into the library to rename it or to write notes."


class LibraryTab:
    """The tab's parts and what happens to them."""

    def __init__(self, app: App) -> None:
        self.app, self.library = app, app.library
        self.chosen, self.again = gr.State(None), gr.State(0)
        with gr.Row(elem_classes="studio"):
            with gr.Column(min_width=0, elem_classes="ask"):
                self.search = gr.Textbox(
                    "", label="Search", info="Words of a name, family, base, trigger or note.", elem_id="library-search"
                )
                with gr.Row():
                    self.base = gr.Dropdown(
                        list(app.studio.bases), value=app.studio.first, label="Base", min_width=140,
                        info="Does it fit this one?", interactive=True,
                    )  # fmt: skip
                    self.checkpoints = gr.Checkbox(
                        False, label="Checkpoints of runs", info="List them too.", min_width=140, interactive=True
                    )
                self.cards = gr.HTML("", js_on_load=JS, elem_id="shelf", label="Adapters")
                with gr.Row():
                    own = app.library.own is not None
                    self.upload = gr.UploadButton(
                        "Upload an adapter", file_types=[".safetensors"], interactive=own, min_width=140
                    )
                    self.look = gr.Button("Look again", min_width=100)
                with gr.Accordion("Deleted adapters", open=False):
                    self.gone = gr.Dropdown(
                        [], label="Deleted", info="They lie in the library folder until you remove them.",
                        interactive=True,
                    )  # fmt: skip
                    self.restore = gr.Button("Bring back", size="sm")
            with gr.Column(min_width=0, elem_classes="results still"):
                self.title = gr.Markdown(CHOOSE, elem_id="library-title")
                self.report = gr.HTML("")
                with gr.Row():
                    self.download = gr.DownloadButton("Download", interactive=False, min_width=120)
                    self.copy = gr.Button("Copy into the library", visible=False, min_width=120)
                    self.delete = gr.Button("Delete", variant="stop", visible=False, min_width=120)
                with gr.Row(visible=False) as self.asking:
                    self.sure = gr.Button("Yes, delete it", variant="stop", min_width=120)
                    self.keep = gr.Button("Keep it", min_width=120)
                with gr.Column(visible=False, min_width=0) as self.editing:
                    with gr.Row():
                        self.name = gr.Textbox(
                            "", label="Name", info="Letters, digits, spaces.", scale=3, min_width=140
                        )
                        self.rename = gr.Button("Rename", scale=1, min_width=90)
                    self.trigger = gr.Textbox("", label="Trigger words", info="What prompts call it up with.")
                    self.notes = gr.Textbox("", label="Notes", lines=3, max_lines=12, info="Kept beside the file.")
                    with gr.Row():
                        self.note = gr.Button("Save notes", min_width=120)
                        self.picture = gr.UploadButton("Set thumbnail", file_types=["image"], min_width=120)
                with gr.Accordion("Merge, export, bake", open=False):
                    self.forge = Forge(app, self.base)
        self.wire()

    def wire(self) -> None:
        """What happens when."""
        page, tab = gr.context.Context.root_block, gr.context.Context.block
        assert page is not None
        assert isinstance(tab, gr.Tab)
        given = [self.search, self.checkpoints, self.base, self.chosen]
        lists = [self.cards, self.gone, self.forge.names, self.base, self.forge.baked]
        refresh = {"fn": self.refresh, "inputs": given, "outputs": lists, **QUIET}
        looks = [page.load, tab.select, self.look.click, self.again.change, self.checkpoints.input, self.base.input]
        gr.on(looks, **refresh)
        self.search.change(self.refresh, given, lists, trigger_mode="always_last", **SOON)
        about = [
            self.title, self.report, self.download, self.copy, self.delete, self.asking, self.editing, self.name,
            self.trigger, self.notes, self.chosen, self.again,
        ]  # fmt: skip
        self.cards.click(self.choose, [self.base, self.again], about, **SOON)
        for event, action, extra in (
            (self.upload.upload, self.take, [self.upload]),
            (self.copy.click, self.take, []),
            (self.rename.click, self.renamed, [self.name]),
            (self.note.click, self.noted, [self.trigger, self.notes]),
            (self.picture.upload, self.pictured, [self.picture]),
            (self.sure.click, self.deleted, []),
            (self.restore.click, self.restored, [self.gone]),
        ):
            event(action, [self.base, self.again, self.chosen, *extra], about, **SOON)
        self.delete.click(lambda: gr.update(visible=True), None, self.asking, **QUIET)
        self.keep.click(lambda: gr.update(visible=False), None, self.asking, **QUIET)
        self.forge.wire(self.refresh, given, lists)
        library_endpoints.build(self.app)

    def refresh(self, words: str, checkpoints: bool, base: str, chosen: str | None) -> tuple[Any, ...]:
        """The cards and the lists, after a look at the folders."""
        entries = self.library.scan(self.app.studio.base(base))
        shown = shelf.cards(shelf.found(entries, words, checkpoints), chosen, bool(entries))
        gone = self.library.own.deleted() if self.library.own else []
        usable = list(self.library.usable(self.app.studio.base(base)))
        return (
            shown, gr.update(choices=gone, value=gone[0] if gone else None), gr.update(choices=usable),
            gr.update(choices=list(self.app.studio.bases)), gr.update(choices=self.forge.bakes()),
        )  # fmt: skip

    def choose(self, base: str, again: int, event: gr.EventData) -> tuple[Any, ...]:
        """Show the card that was clicked."""
        with self.app.toasts():
            return self.about(self.entry(picked(event), base), again)

    def entry(self, name: str | None, base: str) -> Entry:
        """The file of that name. Raises ValueError."""
        if not name:
            raise ValueError("choose an adapter first")
        return self.library.known(name, self.app.studio.base(base))

    def about(self, entry: Entry | None, again: int) -> tuple[Any, ...]:
        """What is shown of a file, or of none."""
        if entry is None:
            off = [gr.update(visible=False)] * 4
            return CHOOSE, "", gr.update(value=None, interactive=False), *off, "", "", "", None, again
        own = self.library.own is not None and self.library.own.holds(entry.path)
        notes = str(entry.notes.get("notes", ""))
        file = save_file_to_cache(entry.path, self.download.GRADIO_CACHE)
        hint = "" if own or self.library.own is None else f"\n\n{OUTSIDE}"
        return (
            f"### {self.app.plain(ValueError(entry.name))}{hint}", shelf.details(entry),
            gr.update(value=file, interactive=True),
            gr.update(visible=not own and self.library.own is not None), gr.update(visible=own),
            gr.update(visible=False), gr.update(visible=own), entry.name, entry.trigger, notes, entry.name, again,
        )  # fmt: skip

    def _after(self, path: Path, base: str, again: int, words: str) -> tuple[Any, ...]:
        entry = next(e for e in self.library.scan(self.app.studio.base(base)) if e.path == path)
        gr.Info(f"{words} {entry.name}." if entry.report else f"{words} {entry.name}. {entry.reason}")
        return self.about(entry, again + 1)

    def take(self, base: str, again: int, chosen: str | None, upload: str | None = None) -> tuple[Any, ...]:
        """Take in what was uploaded, or the chosen file from elsewhere."""
        with self.app.toasts():
            file, name = (Path(upload), "") if upload else ((e := self.entry(chosen, base)).path, e.name)
            return self._after(self.library.home.take(file, name), base, again, "Taken in:")

    def renamed(self, base: str, again: int, chosen: str | None, name: str) -> tuple[Any, ...]:
        """Give the chosen file another name."""
        with self.app.toasts():
            return self._after(self.library.home.rename(self.entry(chosen, base), name), base, again, "Now called")

    def noted(self, base: str, again: int, chosen: str | None, trigger: str, notes: str) -> tuple[Any, ...]:
        """Keep notes and trigger words beside the chosen file."""
        with self.app.toasts():
            entry = self.entry(chosen, base)
            given = {TRIGGER: trigger.strip() or None} if trigger.strip() != entry.trigger else {}
            self.library.home.annotate(entry, notes=notes.strip() or None, **given)
            return self._after(entry.path, base, again, "Noted:")

    def pictured(self, base: str, again: int, chosen: str | None, picture: str) -> tuple[Any, ...]:
        """Make a picture the thumbnail of the chosen file."""
        with self.app.toasts():
            entry = self.entry(chosen, base)
            self.library.home.picture(entry, Path(picture))
            return self._after(entry.path, base, again, "New thumbnail:")

    def deleted(self, base: str, again: int, chosen: str | None) -> tuple[Any, ...]:
        """Put the chosen file away."""
        with self.app.toasts():
            entry = self.entry(chosen, base)
            self.library.home.delete(entry)
            gr.Info(f"Deleted: {entry.name}. It can be brought back.")
            return self.about(None, again + 1)

    def restored(self, base: str, again: int, chosen: str | None, label: str | None) -> tuple[Any, ...]:
        """Bring a deleted file back."""
        with self.app.toasts():
            return self._after(self.library.home.restore(label or ""), base, again, "Back:")


def build(app: App) -> None:
    """Lay out the tab and wire it."""
    LibraryTab(app)
