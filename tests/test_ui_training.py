"""What a training of the app is given: pictures, settings, and the check before it starts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.trainings import FAST, SUBJECT, Bases, end
from train.data import DataOptions, read_folder
from train.dreambooth import DreamBoothOptions
from train.flags import BASE_FLAG
from ui.check import BUSY, check, report
from ui.choices import ELSEWHERE, FAMILY, TAUGHT, Choices, groups, parsed
from ui.look import Found, look
from ui.runs import Runs


@pytest.fixture
def choices() -> Choices:
    return Choices(Bases())  # type: ignore[arg-type]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """No process of theirs outlives the test."""
    made = Runs(tmp_path / "library")
    yield made
    end(made)


def test_a_trial_and_an_error_in_plain_words(runs: Runs, choices: Choices, tmp_path: Path) -> None:
    run = runs.create("cat")
    run.pictures.add(SUBJECT[:2])
    values = {**choices.start("pocket", "lora"), **FAST, "max_train_steps": 3000, "learning_rate": 1e30}
    found = check(choices, runs, run, {**values, "lr_scheduler": "constant", "lr_warmup_steps": 0})
    told = list(report(found, str))
    assert any("\nTrying 3 steps: " in text for text in told)
    assert re.fullmatch(r"Refused: the loss is (nan|inf) at step 2, learning rate.*", told[-1].splitlines()[-1])
    assert told[-1].startswith(f"{told[0]}\n")
    assert "Trying" not in told[-1]
    assert runs.find("cat").outcome().state == "draft"
    assert not run.settings.exists()


def test_what_is_checked_without_a_model(runs: Runs, choices: Choices, tmp_path: Path) -> None:
    run = runs.create("cat")
    values = {**choices.start("pocket", "lora"), "max_train_steps": None, "num_train_epochs": 6}
    path = tmp_path / "run.toml"

    def said(**changes: Any) -> Found:
        path.write_text(choices.toml({**values, **changes}, run.pictures.path, run.folder))
        return look(path)

    with pytest.raises(FileNotFoundError, match="no such folder"):
        said()
    run.pictures.add(SUBJECT[:2])
    (run.pictures.path / "notes.doc").write_text("no picture")
    found = said()
    assert found.lines[0] == "2 pictures at 48 x 48 pixels"
    assert found.lines[1] == "  not used notes.doc: not an image that Pillow can read"
    assert found.steps == 3  # 6 passes over 2 pictures, 4 at a time
    with pytest.raises(ValueError, match=r"no picture of .* has a mask"):
        said(masked_loss=True)
    with pytest.raises(ValueError, match="--class_prompt"):
        said(with_prior_preservation=True)


def test_what_a_look_refuses_is_not_started(runs: Runs, choices: Choices) -> None:
    run = runs.create("cat")
    run.pictures.add(SUBJECT[:2])
    values = {**choices.start("pocket", "lora"), **FAST, "resolution": 47}
    with pytest.raises(ValueError, match="--resolution 47 must be a multiple of"):
        runs.start("cat", choices.toml(values, run.pictures.path, run.folder))
    assert (run.outcome().state, run.settings.exists(), run.log.exists()) == ("draft", False, False)
    run.settings.write_text("")
    for steps in (-1, 3.5):
        with pytest.raises(ValueError, match=f"steps must be a whole number from 1 on, got {steps}"):
            runs.resume("cat", steps)  # type: ignore[arg-type]


def test_settings_are_the_trainers_own_and_no_others(choices: Choices, tmp_path: Path) -> None:
    listed = {name for _, names in groups().values() for name in names}
    paths = {name for name, (kind, _) in DreamBoothOptions.kinds().items() if kind is Path}
    assert listed == set(DreamBoothOptions.kinds()) - ELSEWHERE - paths
    for family in TAUGHT:
        values = choices.start("pocket", family)
        (tmp_path / "run.toml").write_text(choices.toml(values, tmp_path, tmp_path / "out"))
        config, adapter = parsed(tmp_path / "run.toml")
        assert (config.adapter, config.output_dir) == (family, tmp_path / "out")
        known = {**dataclasses.asdict(config), **dataclasses.asdict(adapter)}
        for name, value in values.items():
            if value is not None and name not in (FAMILY, BASE_FLAG):
                if isinstance(value, dict):
                    value = getattr(type(adapter)(**{name: value}), name)  # says all options of what it names
                assert known[name] == (tuple(value) if isinstance(value, list) else value), name
        assert choices.read(tmp_path / "run.toml") == {name: _listed(v) for name, v in values.items() if v is not None}
    closed = Choices(Bases(open_to_bases=False))  # type: ignore[arg-type]
    for given, words in (
        ({"output_dir": "/etc"}, "option 'output_dir' cannot be set here"),
        ({"hub_token": "hf_secret"}, "cannot be set here"),
        ({"rank": "many"}, "rank"),
        ({FAMILY: "hybrid"}, "learns from a folder of each domain: use train/hybrid_domain.py"),
        ({"max_train_steps": 0}, "max_train_steps must be at least 1"),
        ({"optimizer": "os.system"}, "optimizer must be one of"),
        ({BASE_FLAG: "/srv/secret"}, "takes no others"),
        ({"image_encoder": "someone/model"}, "takes no models"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            closed.toml({FAMILY: "lora", **given}, tmp_path, tmp_path)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_pictures_are_examined_and_named_anew(runs: Runs, tmp_path: Path) -> None:
    pictures = runs.create("cat").pictures
    given = tmp_path / "given"
    given.mkdir()
    for name in ("../a cat.png", "b.exe", "c.png", "d.txt"):
        (given / Path(name).name).write_bytes(SUBJECT[0].read_bytes() if "cat" in name else b"nothing")
    (given / "a cat.txt").write_text("a\n[trigger] cat")
    (given / "e.mask.png").write_bytes(SUBJECT[1].read_bytes())
    refused = pictures.add(sorted(given.iterdir()))
    assert set(refused) == {"b.exe", "c.png", "d.txt", "e.mask.png"}
    assert refused["c.png"] == "not an image that Pillow can read"
    assert "could belong" in refused["d.txt"]
    assert pictures.add([given / "a cat.png"]) == {}
    assert [(p.name, p.caption) for p in pictures.list()] == [("a-cat-2.png", ""), ("a-cat.png", "a [trigger] cat")]
    pictures.set_mask("a-cat.png", Image.radial_gradient("L"))
    with pytest.raises(ValueError, match="is empty"):
        pictures.set_mask("a-cat-2.png", Image.new("L", (8, 8)))
    options = DataOptions(instance_data_dir=pictures.path, masked_loss=True, trigger_word="sks")
    assert [bool(example.masks) for example in read_folder(options, 48, 0).examples] == [False, True]
    for name in ("../run.json", "", "a-cat.txt"):
        with pytest.raises(ValueError, match="there is no picture"):
            pictures.remove(name)
    pictures.remove("a-cat.png")
    assert [path.name for path in pictures.path.iterdir()] == ["a-cat-2.png"]


def test_a_check_leaves_a_running_training_alone(runs: Runs, choices: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create("cat")
    run.pictures.add(SUBJECT[:2])
    monkeypatch.setattr("ui.runs.Run.outcome", lambda self: SimpleNamespace(state="training"))
    *_, last = check(choices, runs, run, choices.start("pocket", "lora"))
    assert (last.lines[-1], last.seconds_per_step) == (BUSY, None)
