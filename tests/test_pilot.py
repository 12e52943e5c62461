"""The quality pilot: its rule by hand, a run that keeps its pick, and one that goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_adapters.file import read_adapter
from tests.encoders import save_encoders
from tests.test_dreambooth import arguments, base, one_line, place  # noqa: F401
from train import dreambooth, pilot


def row(step, subject, prompt, drift=0.0):
    return {"step": step, "subject_fidelity": subject, "prompt_fidelity": prompt, "drift": drift}


def test_the_rule_by_hand():
    rows = [row(1, 0.5, 0.5), row(2, 0.6, 0.5), row(3, 0.9, 0.1), row(4, 0.6, 0.5), row(5, 0.6, 0.4, -0.1)]
    assert [one["step"] for one in pilot.front(rows)] == [2, 3, 4, 5]  # 2 beats 1; equal ones beat nobody
    assert pilot.best(rows)["step"] == 2  # 0.30 of 2 and 4, the earlier of them
    assert pilot.best([row(1, 0.5, 0.5, 0.2), row(2, 0.5, 0.5, 0.1)])["step"] == 2  # 1 is beaten by its drift alone
    assert pilot.best([row(1, -0.9, -0.9), row(2, 0.1, 0.1)])["step"] == 2  # two wrongs make no right
    assert pilot.best([]) is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of sks dog", "a photo of a dog"),
        ("a photo of a sks dog in the snow", "a photo of a dog in the snow"),
        ("the sks dog", "a dog"),
        ("a photo of TOK dog", "a photo of a dog"),
        ("a photo of tasks", "a photo of tasks"),
    ],
)
def test_prompts_are_compared_without_the_rare_word(prompt, expected):
    assert pilot.without(prompt, "sks", "TOK") == expected


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    made = save_encoders(tmp_path_factory.mktemp("encoders"))
    return ("--pilot", "--image_encoder", str(made["vit"]), "--text_encoder", str(made["clip"]))


def told(base, encoders, *more):  # noqa: F811
    looks = ("--validation_steps", "1", "--validation_prompt", "a photo of sks cat", "--drift_prompts", "a red cat")
    rate = ("--adapter", "lora", "--rank", "2", "--learning_rate", "0.05")
    return arguments(base, *rate, *looks, *encoders, *more)


def test_the_pick_is_the_result_and_the_last_is_kept(base, place, capsys, encoders):  # noqa: F811
    argv = told(base, encoders, "--max_train_steps", "4", "--rare_word", "sks")
    assert dreambooth.main(argv) == 0
    said = capsys.readouterr().out
    folder = place / "dreambooth-lora"
    found = json.loads((folder / "pilot.json").read_text())
    assert [one["step"] for one in found["rows"]] == [1, 2, 3, 4]
    assert len({one["subject_fidelity"] for one in found["rows"]}) == 4
    assert all(one["drift"] > 0 for one in found["rows"])
    pick = pilot.best(found["rows"])["step"]
    assert found["pick"] == pick
    assert f"Step {pick} is the best of 4 looks" in said
    result, last = read_adapter(folder / "adapter.safetensors"), read_adapter(folder / "adapter-last.safetensors")
    kept = read_adapter(folder / "pilot" / f"adapter-{pick}.safetensors")
    assert [path.name for path in (folder / "pilot").iterdir()] == [kept.path.name]
    assert (result.info.training["steps"], last.info.training["steps"]) == (pick, 4)
    for path, tensors in result.tensors["unet"].items():
        assert all(torch.equal(value, kept.tensors["unet"][path][name]) for name, value in tensors.items())
    assert found["settings"]["prompts"] == ["a photo of sks cat"]
    with Image.open(folder / "pilot.png") as sheet:
        assert sheet.width == 900
        assert sheet.height > 4 * 100
    assert f"in {pick} steps" in (folder / "README.md").read_text().replace("\n", " ")

    plain = arguments(base, "--adapter", "lora", "--rank", "2", "--learning_rate", "0.05", "--max_train_steps", "4")
    assert dreambooth.main([*plain, "--output_dir", "plain", "--num_validation_images", "0"]) == 0
    unwatched = read_adapter(place / "plain" / "adapter.safetensors")
    for path, tensors in unwatched.tensors["unet"].items():  # looking changes nothing
        assert all(torch.equal(value, last.tensors["unet"][path][name]) for name, value in tensors.items())


def test_it_stops_early_and_goes_on_where_it_was(base, place, encoders, monkeypatch):  # noqa: F811
    scores = iter([0.5, 0.9, 0.7, 0.6, 0.5, 0.4])

    def means(self, made):
        return row(0, 0.1 if made is self.base else next(scores), 0.5, 0.1)

    monkeypatch.setattr(pilot.Pilot, "_means", lambda *both: {k: v for k, v in means(*both).items() if k != "step"})
    argv = told(base, encoders, "--checkpointing_steps", "3", "--early_stop", "3", "--max_train_steps", "9")
    argv = [*argv, "--output_dir", "out"]
    assert dreambooth.main(argv) == 0
    found = json.loads(Path("out/pilot.json").read_text())
    assert [one["step"] for one in found["rows"]] == [1, 2, 3, 4, 5]  # 3, 4 and 5 are no better than 2
    assert found["pick"] == 2
    assert read_adapter("out/adapter-last.safetensors").info.training["steps"] == 5
    assert read_adapter("out/adapter.safetensors").info.training["steps"] == 2

    scores = iter([0.95])
    more = [*argv, "--resume_from_checkpoint", "latest", "--max_train_steps", "6", "--early_stop", "9"]
    assert dreambooth.main(more) == 0
    found = json.loads(Path("out/pilot.json").read_text())
    assert [(one["step"], one["subject_fidelity"]) for one in found["rows"]][-2:] == [(5, 0.5), (6, 0.95)]
    assert found["pick"] == 6


def test_each_mistake_is_one_line(base, place, capsys, encoders, monkeypatch):  # noqa: F811
    monkeypatch.setattr(dreambooth, "load_base", lambda *_: pytest.fail("the base was loaded"))
    run = arguments(base, "--adapter", "lora")
    assert one_line(capsys, *run, "--pilot").startswith("--pilot needs --image_encoder, such as facebook/dino-vits16")
    assert one_line(capsys, *run, "--early_stop", "2").startswith("--early_stop 2 has no effect without --pilot")
    said = one_line(capsys, *run, *encoders, "--num_validation_images", "0")
    assert said.startswith("--pilot scores pictures, and --num_validation_images is 0")
    assert one_line(capsys, *run, *encoders, "--image_encoder", "cat").startswith(
        "encoder cat: the folder has no config"
    )


def test_when_it_looks():
    from train.watch import period

    class Config:
        validation_steps = validation_epochs = None
        pilot, checkpointing_steps, max_train_steps = True, 50, 400
        train_batch_size, gradient_accumulation_steps = 2, 3

    assert period(Config, 5, 1) == 50
    Config.checkpointing_steps = 0
    assert period(Config, 5, 1) == 40
    Config.validation_epochs = 10
    assert period(Config, 5, 1) == 9  # 50 pictures, 6 of them a step
    assert period(Config, 5, 2) == 5
    Config.validation_steps = 7
    assert period(Config, 5, 2) == 7
