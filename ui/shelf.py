"""How the library is shown: cards to choose from, and what the doctor says of the one that is chosen."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from ui.entry import Entry

EMPTY = "No adapter files here yet. Upload one, or train one with <code>accelerate launch train/dreambooth.py</code>."
NOTHING = "No adapter matches."


def found(entries: Iterable[Entry], words: str, checkpoints: bool) -> list[Entry]:
    """Those that have all the words in what is known of them; checkpoints of runs if they are asked for."""
    wanted = words.casefold().split()
    kept = [entry for entry in entries if checkpoints or entry.step is None]
    return [entry for entry in kept if all(word in _text(entry) for word in wanted)]


def _text(entry: Entry) -> str:
    notes = entry.notes.get("notes", "")
    return " ".join((entry.name, entry.family, entry.base, entry.trigger, str(notes), entry.reason)).casefold()


def cards(entries: list[Entry], chosen: str | None, any_at_all: bool) -> str:
    """A button for each adapter, as HTML."""
    if not entries:
        return f"<p class='shelf-empty'>{NOTHING if any_at_all else EMPTY}</p>"
    return f"<div class='shelf'>{''.join(_card(entry, entry.name == chosen) for entry in entries)}</div>"


def _card(entry: Entry, chosen: bool) -> str:
    name = html.escape(entry.name, quote=True)
    picture = f"<img src='{html.escape(entry.thumbnail)}' alt=''>" if entry.thumbnail else "<span class='blank'></span>"
    facts = html.escape(entry.family) if entry.report else "<b>refused</b>"
    trigger = f"<i>{html.escape(entry.trigger)}</i>" if entry.trigger else ""
    return (
        f"<button type='button' data-pick='{name}' aria-pressed='{str(chosen).lower()}'>{picture}"
        f"<span><strong>{name}</strong>{facts}{trigger}</span></button>"
    )


def details(entry: Entry) -> str:
    """The doctor's report as an HTML table; of a refused file the reason first."""
    rows = [("refused", entry.reason)] if entry.reason else []
    report = entry.details()
    if report is not None:
        rows += [(title, re.sub(r" \[\w{16}\]", "", text)) for title, text in report.rows()]
        if entry.reason:
            rows = [row for row in rows if row[0] != "verdict"]
    body = "".join(f"<tr><th scope='row'>{title}</th><td>{html.escape(text)}</td></tr>" for title, text in rows)
    return f"<table class='doctor'>{body}</table>"


def report_of(entry: Entry, own: bool) -> dict[str, Any]:
    """All that is known of a file, as plain values without folders."""
    report = entry.details()
    found = {} if report is None else report.as_dict()
    kept = {"notes": entry.notes, "own": own, "step": entry.step, "sha256": entry.digest}
    found.pop("path", None)  # a mapping with a path stands for a file in gradio
    return {**found, "file": entry.path.name, **entry.describe(), **kept}
