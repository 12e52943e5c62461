"""The adapters that are taken up, a card each: who it is, its weight, and how, when and where it acts."""

from __future__ import annotations

import copy
import html
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import gradio as gr

from ui import raw
from ui.common import QUIET, SOON, App
from ui.controls import START
from ui.history import Session
from ui.library import Entry
from ui.region import editor, mask_of, painted
from ui.request import Dial

LOW, HIGH = -1.0, 2.0
BANDS = ("Coarse", "Middle", "Fine")
UNPAINTED = "Nothing is painted yet: it acts everywhere."
OUT = "0 leaves it out, 1 is as trained."
Dials = dict[str, dict[str, Any]]
"""By adapter name the fields of its `Dial`, and whether it is `on`. What is put away keeps its own."""
EMPTY = (
    "No adapter files here yet. Train one, `accelerate launch train/dreambooth.py`, or start the app with "
    "`--adapters FOLDER`; then look again. Until then you see the base alone."
)


class Cards:
    """The picker of adapters and, drawn anew when `again` changes, their cards. All that is set is in `dials`."""

    def __init__(self, app: App, session: gr.State, prompt: gr.Textbox, base: gr.Dropdown, shots: gr.State) -> None:
        self.app, self.session, self.prompt = app, session, prompt
        self.dials, self.again = gr.State({}), gr.State(0)
        self.rack = raw.Dropdown(
            [], multiselect=True, label="Adapters", interactive=True,
            info="Choose from the library; each gets a card. Type to search.",
        )  # fmt: skip
        look = gr.Button("Look for new adapter files", size="sm")
        look.click(lambda base, count: (gr.update(choices=self.choices(base)), count + 1), [base, self.again],
                   [self.rack, self.again], **SOON)  # fmt: skip
        self.rack.input(_taken, [self.rack, self.dials, self.again], [self.dials, self.again], **SOON)
        self._base, self._shots = base, shots

    def choices(self, base: str) -> list[str]:
        """The usable adapters for a base, after a look at the library."""
        own = self.app.studio.base(base)
        self.app.library.scan(own)
        return list(self.app.library.usable(own))

    def draw(self, width: gr.Slider, height: gr.Slider) -> None:
        """Lay out the cards, here. `width`, `height`: of the picture, of whose shape regions are."""
        inputs = [self.rack, self.dials, self._base, width, height]

        @gr.render(inputs=inputs, triggers=[self.again.change], show_progress="hidden", queue=False)
        def cards(rack: list[str], dials: Dials, base: str, width: int, height: int) -> None:
            own = self.app.studio.base(base)
            usable = self.app.library.usable(own)
            if not usable:
                gr.Markdown(EMPTY)
            for name in rack or []:
                if name in usable:
                    self._card(usable[name], dials.get(name, {}), own.blocks, (width, height))
            refused = [entry for entry in self.app.library.entries.get(own.name, {}).values() if not entry.report]
            if refused:
                with gr.Accordion(f"Refused files: {len(refused)}", open=False):
                    for entry in refused:
                        gr.Textbox(entry.reason, label=entry.name, interactive=False, lines=2, max_lines=6)

    def _card(self, entry: Entry, dial: dict[str, Any], blocks: Iterable[str], size: tuple[int, int]) -> None:
        """One adapter; `dial` is what is set on it."""
        name = entry.name
        with gr.Group(elem_classes="card"):
            on = gr.Checkbox(
                dial.get("on", True), label=name, info="Whether it acts.", interactive=True, elem_classes="name"
            )
            gr.HTML(_facts(entry))
            if entry.trigger:
                put = gr.Button(f"+ {entry.trigger}", size="sm", elem_classes="trigger")
                put.click(partial(self._with_trigger, entry.trigger), self.prompt, self.prompt, **QUIET)
                on.input(partial(self._switched, entry.trigger), [on, self.prompt], self.prompt, **QUIET)
            self._note(name, "on", on)
            self._note(
                name, "weight", _gain(f"Weight of {name}", dial.get("weight", 1.0), Dial.control("weight")["info"])
            )
            domains = {domain: f"Domain {domain}" for domain in entry.domains}
            self._many(name, "domains", domains, dict(dial.get("domains") or {}), {})
            with gr.Accordion(f"When and where {name} acts", open=False):
                self._note(name, "start", _part("From", dial.get("start", 0.0), "Part of the steps."))
                self._note(name, "end", _part("To", dial.get("end", 1.0), "Part of the steps."))
                self._region(name, dial.get("mask") if dial.get("region", True) else None, size)
                gr.Markdown("**Detail.** Gains of what it adds, from coarse to fine.")
                bands = list(dial.get("bands") or [1.0] * len(BANDS))
                labels = BANDS if len(bands) == len(BANDS) else [f"Band {i + 1}" for i in range(len(bands))]
                self._many(name, "bands", dict(enumerate(labels)), dict(enumerate(bands)), list(bands))
                gr.Markdown("**Blocks.** Gains by part of the denoiser.")
                scopes = dict(dial.get("scopes") or {})
                self._many(name, "scopes", {scope: scope for scope in [*blocks, *scopes]}, scopes, {})

    def _many(self, name: str, field: str, labels: dict[Any, str], values: dict[Any, float], empty: Any) -> None:
        """A slider for each of `labels`. They are kept in `field` of the dial, which begins as `empty`."""
        for key, label in labels.items():
            self._note(name, (field, key, empty), _gain(label, values.get(key, 1.0), OUT))

    def _region(self, name: str, mask: str | None, size: tuple[int, int]) -> None:
        """The switch that opens the editor of a region over the newest picture, and the editor."""
        on = gr.Checkbox(
            mask is not None, label="Only in a region", interactive=True, info="Paint on the picture where it acts."
        )
        region = editor(name, size, mask)

        def opened(on: bool, dials: Dials, shots: list[Any]) -> Any:
            value = painted(size, dials.get(name, {}).get("mask"), shots[0][1] if shots else None)
            return gr.update(visible=on, value=value if on else None)

        on.input(opened, [on, self.dials, self._shots], region, **QUIET)
        told = gr.Markdown(UNPAINTED, visible=False, elem_classes="hint")
        for noted in (self._note(name, "region", on), self._note(name, "mask", region, mask_of)):
            noted.then(lambda dials: gr.update(visible=unpainted(dials.get(name, {}))), self.dials, told, **QUIET)

    def _note(self, name: str, field: Any, control: Any, read: Callable[[Any], Any] = lambda value: value) -> Any:
        """Keep what a user sets on a control, and stop the preview of how it was before."""

        def note(dials: Dials, session: Session, value: Any) -> Dials:
            session.preview.end()
            dial, key = dials.setdefault(name, {"on": True}), field
            if isinstance(field, tuple):
                field_, key, empty = field
                dial = dial.setdefault(field_, copy.copy(empty))
            dial[key] = read(value)
            return dials

        given = [self.dials, self.session, control]
        return control.input(note, given, self.dials, trigger_mode="always_last", **SOON)

    def _with_trigger(self, trigger: str, text: str, only_replace: bool = False) -> str:
        """The prompt with `trigger`: instead of nothing or of another trigger alone, else in front of it."""
        if trigger in text:
            return text
        if not text.strip() or text.strip() in self.app.library.triggers() | {START}:
            return trigger
        return text if only_replace else f"{trigger}, {text}"

    def _switched(self, trigger: str, on: bool, text: str) -> str:
        return self._with_trigger(trigger, text, only_replace=True) if on else text


def mix_of(rack: Iterable[str], dials: Dials) -> dict[str, Dial]:
    """The adapters that are on, and how each acts. Raises ValueError, TypeError."""
    mix = {}
    for name in rack:
        given = dict(dials.get(name, {}))
        if not given.pop("on", True):
            continue
        if not given.pop("region", given.get("mask")):
            given.pop("mask", None)
        if all(gain == 1 for gain in given.get("bands") or ()):
            given.pop("bands", None)
        for field in ("scopes", "domains"):
            changed = {key: float(gain) for key, gain in (given.pop(field, None) or {}).items() if gain != 1}
            if changed:
                given[field] = changed
        mix[name] = Dial.read(name, given)
    return mix


def unpainted(dial: Mapping[str, Any]) -> bool:
    """Whether it shall act in a region only, and there is none."""
    return bool(dial.get("region")) and not dial.get("mask")


def _taken(rack: list[str], dials: Dials, count: int) -> tuple[Dials, int]:
    """What was just taken up is on."""
    for name in rack:
        dials.setdefault(name, {"on": True})
    return dials, count + 1


def _facts(entry: Entry) -> str:
    facts = {"family": entry.family, "base": entry.base or "not told"}
    spans = " ".join(f"<span><i>{name}</i> {html.escape(text)}</span>" for name, text in facts.items())
    image = f"<img src='{html.escape(entry.thumbnail)}' alt='' loading='lazy'>" if entry.thumbnail else ""
    return f"<div class='facts'>{image}<p>{spans}</p></div>"


def _gain(label: str, value: float, info: str) -> gr.Slider:
    low, high = min(LOW, value), max(HIGH, value)
    return raw.Slider(low, high, value, step=0.05, label=label, info=info, interactive=True)


def _part(label: str, value: float, info: str) -> gr.Slider:
    return raw.Slider(0, 1, value, step=0.05, label=label, info=info, interactive=True)
