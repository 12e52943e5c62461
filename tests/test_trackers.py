"""Trackers: what they are told, and that none of them costs a training."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from PIL import Image

from tests.test_dreambooth import arguments, base, one_line, place  # noqa: F401
from train import dreambooth, trackers


class Recorder(GeneralTracker):
    """A tracker that keeps what it is sent."""

    name = "recorder"
    requires_logging_directory = True
    fails_at = None

    def __init__(self, title, logging_dir, **_):
        super().__init__()
        Recorder.said = {"title": title, "logging_dir": logging_dir, "log": [], "images": [], "finished": 0}

    @property
    def tracker(self):
        return None

    def start(self):
        if Recorder.fails_at == "start":
            raise PermissionError("api_key not configured")

    def store_init_configuration(self, values):
        Recorder.said["config"] = values

    def log(self, values, step=None, **_):
        if step == Recorder.fails_at:
            raise ConnectionError("the network is gone")
        Recorder.said["log"].append((step, values))

    def log_images(self, values, step=None, **_):
        Recorder.said["images"].append((step, values))

    def finish(self):
        Recorder.said["finished"] += 1


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "fails_at", None)
    return Recorder


WATCHED = ("--adapter", "lora", "--max_train_steps", "4", "--validation_steps", "2", "--validation_prompt", "a red cat")


def test_a_tracker_gets_numbers_of_each_step_and_pictures(base, place, recorder):  # noqa: F811
    weights = ("--validation_adapter_weights", "0", "0.5", "1")
    argv = arguments(base, *WATCHED, *weights, "--report_to", "recorder", "--logging_dir", "curves")
    assert dreambooth.main(argv) == 0
    said = recorder.said
    assert said["title"] == "dreambooth-lora"
    assert Path(said["logging_dir"]) == Path("dreambooth-lora/curves")
    assert [step for step, _ in said["log"]] == [1, 2, 3, 4]
    assert all({"loss", "lr", "grad_norm"} == set(values) for _, values in said["log"])
    assert [step for step, _ in said["images"]] == [2, 4]
    assert [len(values["validation"]) for _, values in said["images"]] == [3, 3]
    assert (said["config"]["max_train_steps"], said["config"]["validation_prompt"]) == (4, "a red cat")
    assert all(isinstance(value, (str, bool, int, float)) for value in said["config"].values())
    assert said["finished"] == 1
    off, half, full = said["images"][1][1]["validation"]
    assert off.tobytes() == said["images"][0][1]["validation"][0].tobytes()  # the base, from the same seed
    assert len({picture.tobytes() for picture in (off, half, full)}) == 3
    with Image.open("dreambooth-lora/validation/step-000004.png") as sheet:
        assert sheet.size == (16, 48)


def test_tensorboard_gets_curves_and_pictures(base, place):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert dreambooth.main(arguments(base, *WATCHED, "--report_to", "tensorboard")) == 0
    events = EventAccumulator("dreambooth-lora/logs/dreambooth-lora")
    events.Reload()
    assert {"loss", "lr", "grad_norm"} <= set(events.Tags()["scalars"])
    assert [entry.step for entry in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [entry.step for entry in events.Images("validation")] == [2, 4]
    assert events.Images("validation")[0].width == 16


@pytest.mark.parametrize("name", sorted(trackers._SENT))
def test_pictures_reach_each_kind_of_tracker_in_its_own_way(name, monkeypatch):
    """The libraries are not installed here: stands for them what accelerate 1.15 and they themselves take."""
    sent = []

    class Library:
        class Image:
            def __init__(self, image, caption):
                sent.append((image, caption))

        @staticmethod
        def log_image(image, artifact_file):
            sent.append((image, artifact_file))

    class Writer:
        def log_image(self, image, name, step, metadata):
            sent.append((image, metadata["prompt"]))

    class Tracker:
        writer = Writer()

        def log(self, values, step):
            assert step == 7

        def log_images(self, values, step, **kwargs):
            assert step == 7
            sent.extend((image, key) for key, held in values.items() for image in _flat(held))

    def _flat(held):
        return list(held) if name in ("tensorboard", "wandb") else [held]

    monkeypatch.setattr(trackers.importlib, "import_module", lambda _: Library)
    Tracker.name = name
    images = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    trackers._SENT[name](Tracker(), "validation", images, ["one", "two"], 7)
    assert len(sent) == 2


def test_a_tracker_that_fails_is_left_behind(base, place, capsys, recorder):  # noqa: F811
    recorder.fails_at = 2
    assert dreambooth.main(arguments(base, *WATCHED, "--report_to", "recorder")) == 0
    assert "recorder is left behind, the training goes on: ConnectionError: the network" in capsys.readouterr().out
    assert [step for step, _ in recorder.said["log"]] == [1]
    assert Path("dreambooth-lora/adapter.safetensors").is_file()


def test_each_mistake_is_one_line(base, place, capsys, recorder, monkeypatch):  # noqa: F811
    run = arguments(base, "--adapter", "lora", "--report_to")
    there = tracking.get_available_trackers()
    monkeypatch.setattr(dreambooth, "load_base", lambda *_: pytest.fail("the base was loaded"))
    assert one_line(capsys, *run, "tensorbord").startswith(
        "--report_to: unknown tracker 'tensorbord', did you mean 'tensorboard'?"
    )
    missing = next(name for name in trackers.KNOWN if name not in [str(one) for one in there])
    said = one_line(capsys, *run, missing)
    assert said == f"--report_to {missing}: the package is not installed; pip install {missing}"
    recorder.fails_at = "start"
    assert one_line(capsys, *run, "recorder") == "--report_to recorder: cannot be started: api_key not configured"
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    said = one_line(capsys, *run, "wandb", "--push_to_hub", "--hub_token", "hf_0123456789")
    assert said.startswith("--report_to wandb with --hub_token: wandb keeps the command line")
    said = one_line(capsys, *run, "all", "--push_to_hub", "--hub_token", "hf_0123456789")
    assert said.startswith("--report_to wandb with --hub_token")
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    assert one_line(capsys, *run, "all").startswith("--report_to all: no tracker is installed; pip install one of ")
    assert not list(Path("dreambooth-lora").iterdir())
