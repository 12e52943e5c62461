"""The quality comparison: cells are never lost, a sweep goes on at its ends, references leave no trace."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from tests.encoders import save_encoders
from tests.tiny import save_pipeline
from train.benchmarks import quality
from train.benchmarks.cells import Cells
from train.benchmarks.quality import Comparison, QualityOptions, grid, main
from train.benchmarks.references import REFERENCES
from train.benchmarks.subjects import folders
from train.benchmarks.workshop import load_methods
from train.ruler import load_protocol

PROTOCOL = """
title = "tiny"
source = "a test"
pretrained_model_name_or_path = "{base}"
image_encoder = "{cnn}"
text_encoder = "{clip}"
num_inference_steps = 2
seeds = 2
class_prompts = ["a photo of a {{}}"]
unrelated_prompts = ["a red cat"]
[train]
train_batch_size = 2
[prompts]
all = ["a photo of {{}} in water", "a photo of {{}}"]
[[subjects]]
name = "one"
phrase = "sks cat"
noun = "cat"
folder = "one"
[[subjects]]
name = "two"
phrase = "sks cat"
noun = "cat"
folder = "two"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    encoders = save_encoders(folder / "encoders")
    base = save_pipeline(folder / "base")
    (folder / "tiny.toml").write_text(PROTOCOL.format(base=base, **encoders))
    for number, name in enumerate(("one", "two")):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (16, 16), (100 * number, 50 * i, 90)).save(folder / "data" / name / f"{i}.png")
    return folder


def words(place: Path, work: Path, *more: str) -> list[str]:
    settings = {"protocol": place / "tiny.toml", "data_dir": place / "data", "work_dir": work / "work", "steps": 2}
    settings |= {"train_seeds": 2, "output_dir": work / "out"}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))] + list(more)


def test_a_comparison_from_start_to_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "HALF", 1)
    monkeypatch.setattr(quality, "FURTHEST", 0)
    assert main(words(place, tmp_path, "--methods", "lora", "full")) == 0
    text = (tmp_path / "out/quality.md").read_text()
    for label in ("base", "lora", "full"):
        assert f"| {label} | " in text
    data = json.loads((tmp_path / "out/quality.json").read_text())
    assert {label: len(curve) for label, curve in data["curves"].items()} == dict.fromkeys(data["curves"], 3)
    assert [len(row) for row in data["results"]["lora"]] == [2]  # one subject is kept for the sweep
    for name in ("quality.png", "pictures.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 100
    cells = sorted((tmp_path / "work/cells").glob("*.json"))
    assert len(cells) == 1 + 2 + 2 * 3 + 2 * 2  # settings, bases, sweep, comparison

    # A damaged cell, as a crash or a full disk leaves it, is measured again; no other is touched, nothing is lost.
    stamps = {path.name: path.stat().st_mtime_ns for path in cells}
    victim = next(path for path in cells if path.name.startswith("lora_") and "one" in path.name)
    before = json.loads(victim.read_text())
    victim.write_text(victim.read_text()[:100])
    capsys.readouterr()
    assert main(words(place, tmp_path, "--methods", "lora", "full")) == 0
    said = capsys.readouterr().out
    assert f"{victim.name} is damaged" in said.replace("\n", "")
    assert victim.with_suffix(".broken").is_file()
    after = json.loads(victim.read_text())
    assert after["scores"] == before["scores"]  # the same training again
    changed = {path.name for path in cells if path.stat().st_mtime_ns != stamps[path.name]}
    assert changed == {victim.name}

    assert main(words(place, tmp_path, "--steps", "3", "--methods", "lora")) == 2
    assert "holds cells measured with steps = 2, not 3; give another --work_dir" in capsys.readouterr().err


def test_pictures_with_captions_are_split_as_the_protocol_says(tmp_path: Path) -> None:
    (cat,) = load_protocol("peft_image_gen").subjects
    (tmp_path / "data").mkdir()
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "data" / f"{i:02d}.png")
    train, test = folders(cat, tmp_path / "data", tmp_path / "work")
    assert [Image.open(path).getpixel((0, 0))[0] for path in sorted(test.glob("*.png"))] == [3, 0, 15, 12]
    assert (test / "001.txt").read_text() == "sks cat sitting on a chair in front of a box of chocolates"
    assert len(list(train.glob("*.png"))) == len(list(train.glob("*.txt"))) == 14
    (tmp_path / "data" / "00.png").unlink()
    with pytest.raises(ValueError, match="holds 19 pictures, but cat_plush has 20 captions"):
        folders(cat, tmp_path / "data", tmp_path / "work")


@pytest.mark.parametrize("peak", [-3, 0, 3, 9])
def test_the_sweep_goes_on_while_the_best_is_at_an_end(peak: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = load_methods()["lora"]
    comparison = object.__new__(Comparison)
    comparison.options = QualityOptions()
    comparison.methods, comparison.tuning = [method], ()
    tried: set[float] = set()

    def merits(own: object, rates: list[float]) -> dict[float, float]:
        tried.update(rates)
        centre = method.learning_rate
        return {rate: -abs(math.log(rate / centre) / math.log(quality.FACTOR) - peak) for rate in rates}

    monkeypatch.setattr(comparison, "merits", merits)
    curve = comparison.sweep()["lora"]
    best = max(curve, key=curve.__getitem__)
    reached = max(-quality.HALF - quality.FURTHEST, min(quality.HALF + quality.FURTHEST, peak))
    assert best == grid(method, reached, reached)[0]
    rates = grid(method, -quality.HALF, quality.HALF)
    if peak != 9:
        assert min(curve) < best < max(curve)
    assert max(rates) / min(rates) > 10**1.45  # two digits of each rate; a decade and a half


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_trains_and_leaves_no_trace(place: Path, name: str, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(place / "base/unet").requires_grad_(False)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    inputs = torch.randn(1, 4, 8, 8), 3, torch.randn(1, 4, 16)
    with torch.no_grad():
        bare = unet(*inputs)[0]
    reference = REFERENCES[name](unet, {"rank": 2, "alpha": 2.0})
    values = [value for value in reference.parameters() if value.requires_grad]
    count = sum(value.numel() for value in values)
    assert count == (sum(v.numel() for v in before.values()) if name == "full" else count) > 0
    unet(*inputs)[0].square().mean().backward()
    with torch.no_grad():
        for value in values:
            value.add_(0.1)
        assert not torch.equal(unet(*inputs)[0], bare)
    reference.save(tmp_path / "file.safetensors")
    assert (tmp_path / "file.safetensors").stat().st_size > 4 * count
    reference.undo()
    assert {key: torch.equal(value, before[key]) for key, value in unet.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert not any(value.requires_grad for value in unet.parameters())
    with torch.no_grad():
        assert torch.equal(unet(*inputs)[0], bare)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--methods", "lra"], "unknown method 'lra', did you mean 'lora'?"),
        (["--protocol", "dreambooth30"], "subject backpack needs --data_dir, the folder of the protocol's pictures"),
        (["--protocol", "nothing"], "no protocol 'nothing'"),
        (["--data_dir", "nowhere"], "has no folder 'one', subject one"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    given = words(place, tmp_path, *more)
    if "dreambooth30" in more:
        given = [*more, "--work_dir", str(tmp_path)]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_a_cell_that_cannot_be_written_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = Cells(tmp_path, {"steps": 1})
    cells.put("one", {"value": 1})

    def full(self: Path, *args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"could not write .*two\.json"):
        cells.put("two", {"value": 2})
    assert cells.get("one") == {"value": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "settings.json"]
