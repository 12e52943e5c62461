"""Trainings of the app, without a page: started, stopped, gone on with, queued, found again, killed, refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffusion_adapters import inspect_adapter
from tests.trainings import FAST, SUBJECT, Bases, end
from train import records
from ui.choices import Choices
from ui.outcome import ACTIVE, KILLED, VANISHED, cause, outcome
from ui.process import Process
from ui.runs import Run, Runs

TRACE = "Traceback (most recent call last):\n  File\n"
SLOW = 180
"""Seconds that a training of few steps may take on a busy computer."""


@pytest.fixture
def choices() -> Choices:
    return Choices(Bases())  # type: ignore[arg-type]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """No process of theirs outlives the test."""
    made = Runs(tmp_path / "library")
    yield made
    end(made)


def begun(runs: Runs, choices: Choices, name: str, **changes: Any) -> Run:
    """A started run on two pictures."""
    run = runs.create(name)
    assert run.pictures.add(SUBJECT[:2]) == {}
    values = {**choices.start("pocket", "lora"), **FAST, **changes}
    return runs.start(run.name, choices.toml(values, run.pictures.path, run.folder))


def wait(run: Run, holds: Callable[[Any], bool]) -> Any:
    """The outcome once it `holds`."""
    until = time.monotonic() + SLOW
    while time.monotonic() < until:
        if holds(now := run.outcome()):
            return now
        time.sleep(0.1)
    raise AssertionError(f"{run.outcome()}\n{run.log.read_text()}")


def over(now: Any) -> bool:
    return now.state not in (*ACTIVE, "queued")


@pytest.mark.slow
def test_stopped_found_again_and_gone_on_with(runs: Runs, choices: Choices) -> None:
    run = begun(runs, choices, "cat", max_train_steps=3000)
    wait(run, lambda now: now.step >= 2)
    other = begun(runs, choices, "dog", max_train_steps=2)
    assert (other.outcome().state, runs.place(other), runs.place(run)) == ("queued", 1, 0)
    again = Runs(runs.folder)  # as after a restart of the app
    found = again.find("cat")
    assert found.outcome().state == "training"
    assert "left" in found.outcome().left
    again.stop("cat")
    stopped = wait(found, over)
    assert stopped.state == "stopped"
    assert 2 <= stopped.step < 3000
    assert set(inspect_adapter(run.result).families) == {"lora"}
    assert (run.folder / f"checkpoint-{stopped.step}").is_dir()
    assert wait(other, over).state == "done"  # it followed by itself
    runs.resume("cat", stopped.step + 2)
    done = wait(run, over)
    assert (done.state, done.step, done.total) == ("done", stopped.step + 2, stopped.step + 2)
    assert [record["step"] for record in records.read(run.folder)] == list(range(1, done.step + 1))
    with pytest.raises(ValueError, match="say up to which step"):
        runs.resume("cat")


@pytest.mark.slow
def test_a_killed_process_is_told_and_gone_on_with(runs: Runs, choices: Choices) -> None:
    run = begun(runs, choices, "cat", max_train_steps=3000, checkpointing_steps=2)
    wait(run, lambda now: now.step >= 3)
    worker = run.process.members()[-1]  # type: ignore[union-attr]
    os.kill(worker.pid, signal.SIGKILL)
    killed = wait(run, over)
    assert (killed.state, killed.said) == ("killed", KILLED)
    total = killed.step + 2
    runs.resume("cat", total)
    assert wait(run, over).state == "done"
    assert [record["step"] for record in records.read(run.folder)] == list(range(1, total + 1))


def test_only_runs_in_the_folder_can_be_reached(runs: Runs, tmp_path: Path) -> None:
    runs.create("cat")
    outside = Runs(tmp_path).create("outside")
    (runs.folder / "link").symlink_to(outside.folder)
    for name in ("../outside", "link", ".", "..", "", "nobody", str(outside.folder)):
        with pytest.raises(ValueError, match="there is no run"):
            runs.find(name)
    with pytest.raises(ValueError, match="already"):
        runs.create("cat")
    with pytest.raises(ValueError, match="has no pictures"):
        runs.start("cat", "")
    with pytest.raises(ValueError, match="is not training"):
        runs.stop("cat")
    runs.remove("cat")
    assert not (runs.folder / "cat").exists()
    assert outside.folder.exists()


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (f"error: the loss is nan\n{TRACE}x.CalledProcessError: 2", "the loss is nan"),
        (f"{TRACE}RuntimeError: can't allocate memory: 9 GiB", "out of memory: lower"),
        (f"{TRACE}subprocess.CalledProcessError: '[]' died with <Signals.SIGKILL: 9>.", KILLED),
        (f"{TRACE}KeyError: 'x'\n{TRACE}x.CalledProcessError: 1", "a mistake of the program: KeyError: 'x'"),
        ("step 3/9", VANISHED),
    ],
)  # fmt: skip
def test_causes_are_told_in_words(log: str, words: str) -> None:
    state, said = cause(log)
    assert state == ("killed" if words in (KILLED, VANISHED) else "failed")
    assert words in said
    assert "Traceback" not in said


def test_a_process_is_known_by_its_start(runs: Runs) -> None:
    run = runs.create("cat")
    run.note(pid=os.getpid(), started=0.0, launched=time.time() - 60, total=5)
    assert run.outcome().state == "killed"  # its number belongs to another program now
    mine = SimpleNamespace(alive=True)
    assert outcome(run.folder, run.log, run.state, mine).state == "starting"  # type: ignore[arg-type]
    assert not Process(2**22 + 1, 0.0).alive
