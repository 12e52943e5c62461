"""The ruler: metrics by hand, encoders of every kind, protocols, the report, and what it refuses."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.encoders import save_encoders
from train.evaluate import main
from train.ruler import METRICS, Encoder, Ruler, Scores, Suite, load_protocol, metrics
from train.ruler.protocol import names
from train.ruler.report import as_markdown


def noise(seed: int, side: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.mark.parametrize("name", ["clip", "vit", "dino", "cnn"])
def test_features_are_what_the_protocols_say(encoders: dict[str, Path], name: str) -> None:
    encoder = Encoder(str(encoders[name]))
    pictures = [noise(0), noise(1), noise(0)]
    found = encoder.images(pictures)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found[0], found[2])
    pixels = encoder.prepare(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        if name == "clip":
            expected = encoder.model.visual_projection(encoder.model.vision_model(pixels).pooler_output)
        elif name == "cnn":
            expected = encoder.model(pixels).last_hidden_state.mean((2, 3))
        else:
            expected = encoder.model(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1))


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_an_encoder_in_a_pickle_is_never_read(encoders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(encoders["vit"], folder := tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(tmp_path / "mark"), 2))
    with pytest.raises(ValueError, match=r"vit cannot be loaded: pytorch_model\.bin in .*a pickle can run code"):
        Encoder(str(folder))
    assert not (tmp_path / "mark").exists()


def test_clip_reads_text_and_only_clip(encoders: dict[str, Path]) -> None:
    clip = Encoder(str(encoders["clip"]))
    assert clip.reads_text
    assert clip.texts(["a photo of a red ball", "a blue cup"]).shape == (2, 16)
    with pytest.raises(ValueError, match="reads no text; give a CLIP model"):
        Encoder(str(encoders["vit"])).texts(["a"])


def test_metrics_by_hand() -> None:
    e = torch.eye(3, dtype=torch.float64)
    s = 2**-0.5
    features = torch.stack([torch.stack([e[0], e[1]]), torch.stack([e[0] * s + e[1] * s, e[2]])])  # (2, 2, 3)
    subject = torch.stack([e[0], e[1]])
    np.testing.assert_allclose(metrics.fidelity(features, subject), [[0.5, 0.5], [s, 0]])
    np.testing.assert_allclose(metrics.fidelity(features, subject, (0, None)), [[1, 0], [s, 0]])
    np.testing.assert_allclose(metrics.nearest_distance(features, subject), [[0, 0], [1 - s, 1]])
    np.testing.assert_allclose(metrics.prompt_fidelity(features, subject), [[1, 0], [s, 0]])
    np.testing.assert_allclose(metrics.prompt_accuracy(features, torch.stack([e[0], e[2]])), [[1, 1], [0, 1]])
    np.testing.assert_allclose(metrics.drift(features, features.flip(0)), [[(1 - s) / 2, 0.5], [(1 - s) / 2, 0.5]])
    np.testing.assert_allclose(metrics.diversity(features), [[1, 1], [1, 1]])
    assert np.isnan(metrics.diversity(features[:, :1])).all()


def test_intervals_know_that_prompts_and_seeds_are_crossed() -> None:
    rng = np.random.default_rng(0)
    by_prompt = np.repeat(rng.normal(size=(10, 1)), 50, axis=1)  # 500 pictures, but ten independent values
    wide = metrics.bootstrap(by_prompt)
    one_way = 1.96 * by_prompt.std() / np.sqrt(by_prompt.size)
    ten = 1.96 * by_prompt.std() / np.sqrt(10)
    assert (wide.high - wide.low) / 2 > 4 * one_way
    assert 0.6 * ten < (wide.high - wide.low) / 2 < 1.4 * ten
    assert wide.low < by_prompt.mean() < wide.high


def test_intervals_cover_the_truth() -> None:
    hits = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        values = rng.normal(size=(12, 1)) + rng.normal(size=(1, 6)) + rng.normal(size=(12, 6))
        found = metrics.bootstrap(values, resamples=300, seed=trial)
        hits += found.low <= 0 <= found.high
    assert hits >= 50  # 95 % of 60 is 57; few rows and columns make it a little less


def test_a_ruler_sees_a_copy_and_a_change(encoders: dict[str, Path]) -> None:
    suite = Suite(prompts=("a red ball", "a cup"), texts=("a red ball", "a cup"), class_prompts=("a ball",),
                  unrelated_prompts=("a house",), seeds=2)  # fmt: skip
    real = [noise(100), noise(101)]
    ruler = Ruler(suite, real, Encoder(str(encoders["dino"])), Encoder(str(encoders["clip"])))
    asked: list[tuple[str, int]] = []

    def draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        asked.extend(zip(prompts, seeds, strict=True))
        return [noise(seed + len(prompt)) for prompt, seed in zip(prompts, seeds, strict=True)]

    base = ruler.draw(draw)
    assert asked[:4] == [("a red ball", 1000), ("a red ball", 1001), ("a cup", 1000), ("a cup", 1001)]
    copies = ruler.draw(lambda prompts, seeds: [real[seed % 2] for seed in seeds])
    before, after = ruler.score(base, base), ruler.score(copies, base)
    assert set(after.values) == set(METRICS)
    assert after.values["prompt_fidelity"].shape == (2, 2)
    assert np.abs(before.values["drift"]).max() < 1e-6
    assert np.abs(before.values["class_leak"]).max() < 1e-6
    np.testing.assert_allclose(after.values["nearest_training_image"], 0, atol=1e-6)
    np.testing.assert_allclose(after.values["subject_fidelity"].mean(), (1 + ruler.ceiling()) / 2, rtol=1e-5)
    assert after.values["drift"].min() > 0
    assert Scores.from_json(json.loads(json.dumps(after.as_json()))).interval("drift") == after.interval("drift")
    assert as_markdown({"base": before, "copies": after}).count("\n") == 4


def test_protocols_hold_what_they_are_named_after() -> None:
    assert names() == ["dreambooth30", "peft_image_gen", "pocket"]
    dreambooth, peft, pocket = (load_protocol(name) for name in names())
    assert len(dreambooth.subjects) == 30
    assert sum(subject.kind == "live" for subject in dreambooth.subjects) == 9
    assert len({subject.noun for subject in dreambooth.subjects}) == 15
    for subject in dreambooth.subjects:
        suite = dreambooth.suite_of(subject)
        assert len(suite.prompts) == 25
        assert suite.seeds == 4
        assert suite.prompts[0] == f"a sks {subject.noun} in the jungle"
        assert suite.texts[0] == f"a {subject.noun} in the jungle"
    (cat,) = peft.subjects
    assert sorted([*cat.train, *cat.test]) == [i for i in range(20) if i not in (11, 16)]
    assert peft.suite_of(cat).prompts[1] == "sks cat sitting on a chair in front of a box of chocolates"
    assert peft.suite_of(cat).pairs == (0, 1, 2, 3)
    assert len(peft.unrelated_prompts) == 10
    assert len({subject.world for subject in pocket.subjects}) == len(pocket.subjects) >= 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = 1\nnonsense = 2", "unknown name 'nonsense' in the protocol"),
        ('title = "x"', "'image_encoder' is missing in the protocol"),
        ("title =", "Invalid value"),
    ],
)
def test_a_wrong_protocol_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        load_protocol(str(path))
    with pytest.raises(FileNotFoundError, match="no protocol 'pockt'; give a TOML file, or one of dreambooth30"):
        load_protocol("pockt")


def test_evaluate_from_the_shell(encoders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--image_encoder", str(encoders["cnn"]), "--text_encoder", str(encoders["clip"]), "--seeds", "1"]
    words += ["--num_inference_steps", "2", "--prompts", "a photo of {}", "a drawing of {}", "--class_prompts", "{}"]
    words += ["--unrelated_prompts", "a red ball", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    data = json.loads((tmp_path / "out/scores.json").read_text())
    assert data["settings"]["image_encoder"] == str(encoders["cnn"])
    assert np.shape(data["rows"]["base"]["subject_fidelity"]["values"]) == (2, 1)
    assert "| base | " in (tmp_path / "out/scores.md").read_text()
    with Image.open(tmp_path / "out/report.png") as report:
        assert report.width > 600
    assert "| base | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metrics", "subject_fidelty"], "unknown metric 'subject_fidelty', did you mean 'subject_fidelity'?"),
        (["--metrics", "prompt_fidelity", "--image_encoder", "{vit}"], "reads none; give a text encoder, a CLIP model"),
        (["--image_encoder", "{vit}", "--text_encoder", "{dino}"], "reads no text; give a CLIP model"),
        (["--image_encoder", "{bert}"], "is a bert model, which has no image features"),
        (["--image_encoder", "pipelines/pocket/tokenizer"], "no config.json of a transformers model"),
        (["--image_encoder", "{root}/missing"], "no such folder"),
        (["--image_encoder", "nobody/nothing"], "neither a folder nor on the Hub"),
        (["--instance_data_dir", "{empty}", "--image_encoder", "{vit}"], "the folder has no files"),
        (["--instance_data_dir", "{root}/nowhere"], "no such folder"),
        (["--adapter", "{root}/none.safetensors"], "none.safetensors"),
        (["--prompts", "a photo of sks creature"], "must hold {} once"),
        (["--kind", "live"], "no prompts for a subject of kind 'live'"),
    ],
)
def test_bad_input_is_one_line(
    encoders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {**{name: str(path) for name, path in encoders.items()}, "root": str(tmp_path)}
    places["empty"] = str(tmp_path / "empty")
    words = [word if word == "{}" else word.format_map(places) if "{" in word else word for word in words]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "out" / "scores.json").exists()
