"""A training has the accelerator to itself: the app's base leaves it, and comes back after the training."""

from __future__ import annotations

import gc
import subprocess
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio")

import gradio as gr

from tests.browser import GALLERY
from tests.trainings import FAST, SUBJECT, Bases, end
from ui.bases import Base, LoadedBase
from ui.check import check
from ui.choices import Choices
from ui.common import App
from ui.history import Session
from ui.library import Library
from ui.process import Process, _start_of
from ui.request import Request
from ui.runs import Runs
from ui.studio import TAKEN, Studio
from ui.tabs.create import Create

SOON = 30
"""Seconds in which a thread has had its turn, on a busy computer too."""


@pytest.fixture
def studio() -> Studio:
    return Studio([Base.of(None)], Library([GALLERY]))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases say that they are on an accelerator."""
    monkeypatch.setattr(LoadedBase, "accelerated", True)
    monkeypatch.setattr("ui.studio.best_device", lambda: "cuda")


def draw(studio: Studio) -> np.ndarray:
    ((_, picture),) = studio.make(Request(prompt="a sks creature", steps=2, seed=1), {"red": 1.0})
    return np.asarray(picture)


@pytest.mark.usefixtures("elsewhere")
def test_the_base_goes_once_nobody_draws_and_comes_back(studio: Studio) -> None:
    first = draw(studio)
    pipe = weakref.ref(studio._loaded.pipe)  # type: ignore[union-attr]
    gc.freeze()  # as the start of the app does
    studio.lock.acquire()
    waiting = threading.Thread(target=studio.give_back)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert pipe() is not None
    studio.lock.release()
    waiting.join(SOON)
    assert pipe() is None
    np.testing.assert_array_equal(draw(studio), first)


def test_on_the_cpu_nothing_changes(studio: Studio) -> None:
    loaded = studio._loaded
    studio.training = lambda: True
    studio.give_back()
    draw(studio)
    assert studio._loaded is loaded


@pytest.mark.usefixtures("elsewhere")
def test_nothing_loads_the_base_during_a_training(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    with gr.Blocks():
        create = Create(App(studio, studio.library))
    asked = [part.value for part in create.asked]
    studio.training = lambda: True
    loads: list[Base] = []
    load = LoadedBase.load
    monkeypatch.setattr(LoadedBase, "load", lambda base: loads.append(base) or load(base))
    with pytest.raises(RuntimeError, match="a training uses the device"):
        draw(studio)
    assert studio._loaded is None
    with pytest.raises(RuntimeError, match="a training uses the device"), studio.blend({"red": 1.0}):
        pass
    *still, said = create.preview(Session(), "", *asked)
    assert (said, still, loads) == (TAKEN, [gr.skip(), gr.skip()], [])
    studio.training = lambda: False
    *_, said = create.preview(Session(), "", *asked)
    assert said.startswith("Preview of")
    assert len(loads) == 1


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs whose trainings sleep, and a list of the calls of `make_room`."""

    def sleep(arguments: Any, log: Path) -> Process:
        pid = subprocess.Popen(["sleep", "60"], start_new_session=True).pid
        return Process(pid, _start_of(pid) or 0.0)

    monkeypatch.setattr(Process, "launch", sleep)
    calls: list[bool] = []
    made = Runs(tmp_path / "library", lambda: calls.append(made.busy))
    yield made, calls
    end(made)


def test_a_training_and_a_trial_ask_for_room(runs: Any) -> None:
    made, calls = runs
    choices = Choices(Bases())  # type: ignore[arg-type]
    values = {**choices.start("pocket", "lora"), **FAST}
    for name in ("cat", "dog"):
        run = made.create(name)
        run.pictures.add(SUBJECT[:2])
    trial = check(choices, made, made.find("cat"), values)
    assert not made.busy
    next(trial)
    next(trial)
    assert made.busy
    trial.close()  # as when the page is left
    assert (made.busy, len(calls)) == (False, 1)
    for name in ("cat", "dog"):
        made.start(name, choices.toml(values, made.find(name).pictures.path, made.find(name).folder))
    assert made.find("dog").outcome().state == "queued"
    assert (made.busy, len(calls)) == (True, 2)
    made.find("dog").note(queued=None)
    made.stop("cat", now=True)
    assert made.find("cat").process.wait(SOON)
    assert not made.busy
