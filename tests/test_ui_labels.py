"""Every control of the app says what it is, and what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr
from gradio.components import Component
from gradio.components.api_component import Api

from diffusion_adapters import compose_adapters, load_adapter, save_adapter
from diffusion_adapters.cli.common import load_base
from tests.browser import GALLERY
from ui.app import build
from ui.bases import Base
from ui.cards import Cards
from ui.common import App
from ui.library import Library
from ui.studio import Studio

BUTTONS = (gr.Button, gr.DownloadButton, gr.UploadButton)
SHOWN = (Api, gr.Markdown, gr.HTML, gr.State, gr.BrowserState, gr.Timer, gr.LinePlot)
"""What is no control."""
BARE = (gr.File, gr.Image, gr.ImageEditor)
"""Controls that gradio gives no place for help: it stands below them, or in the label after a colon."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """The embedded base, and a hybrid, whose card has all parts."""
    folder = tmp_path_factory.mktemp("library")
    pipe = load_base(None)
    for name in ("red", "green"):
        load_adapter(pipe, GALLERY / f"{name}.safetensors", name)
    compose_adapters(pipe, "both", {"red": "red", "green": "green"})
    save_adapter(pipe, "both", folder / "both.safetensors")
    return Studio([Base.of(None)], Library([folder], folder))


def controls(page: gr.Blocks) -> list[Component]:
    """What a user can set or press, on the page at first or later."""
    events = [event for event in page.config["dependencies"] if event["api_visibility"] == "private"]
    written = {number for event in events for number in event["outputs"]}
    found = [one for one in page.blocks.values() if isinstance(one, Component) and not isinstance(one, SHOWN)]
    found = [one for one in found if getattr(one, "interactive", True) is not False or isinstance(one, BUTTONS)]
    return [one for one in found if one.visible or one._id in written]  # the others are for programs


def faults(page: gr.Blocks) -> list[str]:
    """What lacks a label or help, in words."""
    missing = []
    for one in controls(page):
        label = one.value if isinstance(one, gr.Button) else one.label
        if not label:
            missing.append(f"{type(one).__name__} {one._id} has no label")
        elif not isinstance(one, BUTTONS) and not helped(one):
            missing.append(f"{type(one).__name__} {label!r} has no help")
    return missing


def helped(one: Any) -> bool:
    if not isinstance(one, BARE):
        return bool(one.info)
    siblings = one.parent.children
    below = siblings[siblings.index(one) + 1 : siblings.index(one) + 2]
    return ": " in one.label or any("hint" in (other.elem_classes or ()) for other in below)


def test_every_control_has_a_label_and_help(studio: Studio) -> None:
    page = build(studio)
    assert faults(page) == []
    kinds = {kind for one in controls(page) for kind in type(one).__mro__}
    assert {gr.Textbox, gr.Number, gr.Slider, gr.Dropdown, gr.Checkbox, gr.Radio, gr.Button, *BARE} <= kinds
    assert len(controls(page)) > 200


def test_every_control_of_a_card_has_a_label_and_help(studio: Studio) -> None:
    base = studio.base()
    (entry,) = studio.library.scan(base)
    with gr.Blocks() as page:
        prompt, own, state = gr.Textbox(label="Prompt", info="-"), gr.Dropdown(label="Base", info="-"), gr.State()
        cards = Cards(App(studio, studio.library), state, prompt, own, gr.State([]))
        before = len(controls(page))
        cards._card(entry, {}, base.blocks, (48, 48))
    assert faults(page) == []
    labels = [one.label for one in controls(page)[before:] if not isinstance(one, gr.Button)]
    assert {"both", "Weight of both", "Domain red", "From", "Fine", "mid_block", "Only in a region"} <= set(labels)


def test_what_lacks_them_is_found(tmp_path: Path) -> None:
    with gr.Blocks() as page:
        gr.Textbox(label="Bare")
        gr.Textbox(label="Whole", info="Helped.")
        gr.Number(info="No label.", show_label=False)
        gr.Button("")
        gr.File(label="A file")
        gr.Markdown("no help")
        gr.File(label="Another")
        gr.Markdown("help", elem_classes="hint")
    words = [line.split(" has ")[1] for line in faults(page)]
    assert words == ["no help", "no label", "no label", "no help"]
