"""train/hybrid_domain.py: every way in which it can be told wrong, said in one line before anything is drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig

from diffusion_adapters import add_adapter, add_text_adapter, save_adapter
from tests import test_hybrid_domain
from tests.denoisers import build
from tests.test_hybrid import HOST
from tests.test_hybrid_domain import composed, words
from train import dreambooth, hybrid_domain

base, place = test_hybrid_domain.base, test_hybrid_domain.place
LATE = ("a domain not drawn", "an encoder that sees nothing")
"""What only the base's own pictures, or their order, tell."""
PARTS = ["warm=warm.safetensors", "dark=dark.safetensors"]
WRONG = {
    "one domain": ({"domain": ["warm=warm"]}, "--domain warm=warm: a hybrid has at least 2 domains"),
    "a name twice": ({"domain": ["warm=warm", "warm=dark"]}, "--domain warm is given twice, as warm and as dark"),
    "no form": ({"domain": ["warm", "dark=dark"]}, "--domain warm: must be NAME=PATH"),
    "no folder": ({"domain": ["warm=warm", "dark=nowhere"]}, "nowhere: no such folder"),
    "the name of the sources": ({"domain": ["source=warm", "dark=dark"]}, "--domain source=warm: source is what the"),
    **{
        f"no name, {name}": ({"domain": [f"{name}=warm", "dark=dark"]}, f"--domain {name}=warm: {name!r} cannot be a n")
        for name in ("keys", "items", "_x", "nacht_é", "a.b")
    },
    "a part too many": ({"part": ["cold=a.safetensors"]}, "domain cold has no --domain"),
    "a part without a file": (
        {"part": ["warm=a.safetensors", "dark=b.safetensors"]},
        "--part warm=a.safetensors: no such file; give ",
    ),
    "no family": ({"family": "lorra"}, "did you mean 'lora'"),
    "no encoder": ({"encoder": ["denoiser", "nowhere/at/all"]}, "--encoder nowhere/at/all: neither a folder nor on"),
    "an encoder of texts": ({"encoder": ["texts"]}, "--encoder texts is a clip_text_model model, which has no image"),
    "sources in a file": (
        {"source_data_dir": "warm/0.png"},
        "--source_data_dir warm/0.png: warm/0.png is a file; give the name of a folder",
    ),
    "sources below a file": ({"source_data_dir": "warm/0.png/a"}, "--source_data_dir warm/0.png/a: "),
    "another adapter": (
        {"adapter": "loldu"},
        "--adapter loldu: a hybrid is trained here; give --family loldu for its parts, or run train/dreambooth.py",
    ),
    "levels": ({"lowest_level": 0.9}, "--lowest_level 0.9 must be below --highest_level 0.8"),
    "no steps for parts": (
        {"hybrid_start": 0.0},
        "--hybrid_start 0 of --max_train_steps 6 leaves no step to train parts; ",
    ),
    "too few steps for parts": (
        {"hybrid_start": 0.01, "max_train_steps": 3},
        "--hybrid_start 0.01 of --max_train_steps 3 leaves no step to train parts; raise it, give more steps, or",
    ),
    "too few steps for mixing": (
        {"hybrid_start": 0.99, "num_train_epochs": 1, "train_batch_size": 2},
        "--hybrid_start 0.99 of --max_train_steps 3 leaves no step on all domains at once; lower it, or give more",
    ),
    "a domain not drawn": (
        {"hybrid_start": 0.5},
        "(3: --hybrid_start 0.5 of --max_train_steps 6) draw no picture of dark: give more of either",
    ),
    "a subject": ({"instance_data_dir": "warm"}, "--instance_data_dir does not go with --adapter hybrid"),
    "a family beside parts": (
        {"part": PARTS, "family": "loldu"},
        "--family has no effect with --part: the adapters are there, and only how they are mixed is trained; leave",
    ),
    "options of a family beside parts": ({"part": PARTS, "rank": 2}, "--rank has no effect with --part"),
    "a rate beside parts": ({"part": PARTS, "learning_rate": 1e-3}, "--learning_rate has no effect with --part"),
    "its default beside parts": ({"part": PARTS, "hybrid_start": 0.67}, "--hybrid_start has no effect with --part"),
    "targets beside parts": ({"part": PARTS, "target_modules": ["to_q"]}, "--target_modules has no effect with --p"),
    "a table beside parts": (
        {"part": PARTS, "parts": '{"warm": {"family": "lora"}}'},
        "--parts has no effect with --part",
    ),
    "a share of none": ({"hybrid_share": 0.5}, "--hybrid_share has no effect without --hybrid_values all"),
    "a weight of none": ({"direction_weight": 1}, "--direction_weight has no effect without --hybrid_loss subspace"),
    "an encoder that sees nothing": ({"least_separability": 1e9}, "cannot tell the domains apart"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(base: Path, place: Path, case: str, capsys) -> None:
    told, line = WRONG[case]
    CLIPTextConfig().save_pretrained("texts")
    earlier = Path("dreambooth-hybrid/config.toml")
    earlier.parent.mkdir()
    earlier.write_text("earlier")
    assert hybrid_domain.main(words(base, **told)) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert earlier.read_text() == "earlier"
    assert case in LATE or [file.name for file in earlier.parent.iterdir()] == [earlier.name]
    assert not Path("dreambooth-hybrid/adapter.safetensors").exists()


def wrong_part(base: Path, kind: str) -> Path:
    """What is no part of a hybrid on `base`."""
    path = Path(f"{kind}.safetensors")
    if kind == "folder":
        path.mkdir()
    elif kind == "broken":
        path.write_bytes(Path(composed(base, {"whole": "lora"})[0].partition("=")[2]).read_bytes()[:3000])
    elif kind == "no adapter":
        save_file({"weight": torch.ones(2, 2)}, path)
    elif kind == "other base":
        model = build(HOST)
        add_adapter(model, "other", rank=2)
        save_adapter(model, "other", path)
    elif kind == "hybrid":
        composed(base, {"hybrid": "hybrid"})
    elif kind == "text":
        pipe = DiffusionPipeline.from_pretrained(base)
        add_adapter(pipe, "text", rank=2)
        add_text_adapter(pipe, "text", rank=2)
        save_adapter(pipe, "text", path)
    return path


NO_PART = {
    "folder": "no .safetensors file in --part dark={}; give",
    "broken": "--part dark={}: ",
    "no adapter": "--part dark={}: no adapter file of a known kind: 1 tensors",
    "other base": "--part dark={}: does not load: made for another base, UNet2DConditionModel",
    "hybrid": "--part dark={}: a hybrid is no part of another",
    "text": "--part dark={}: it also changes text_encoder, which has no dial",
}


@pytest.mark.parametrize("kind", NO_PART)
def test_a_file_that_is_no_part_is_refused_before_anything_is_written(base: Path, place: Path, kind, capsys) -> None:
    wrong = wrong_part(base, kind)
    part = [*composed(base, {"warm": "lora"}), f"dark={wrong}"]
    assert hybrid_domain.main(words(base, part=part)) == 2
    said = capsys.readouterr().err
    assert NO_PART[kind].format(wrong) in said
    assert said.endswith(
        "; give the file of an adapter that was trained on this base, such as train/dreambooth.py leaves\n"
    )
    assert not Path("dreambooth-hybrid").exists()


def test_one_file_is_no_part_of_two_domains(base: Path, place: Path, capsys) -> None:
    (part,) = composed(base, {"warm": "lora"})
    assert hybrid_domain.main(words(base, part=[part, f"dark={place}/warm.safetensors"])) == 2
    said = capsys.readouterr().err
    assert f"--part dark={place}/warm.safetensors: the same file as of warm; give each domain an adapter of" in said
    assert not Path("dreambooth-hybrid").exists()


def test_domains_with_too_few_pictures_are_refused(base: Path, place: Path, capsys) -> None:
    for number in (1, 2):
        Path(f"dark/{number}.png").unlink()
    assert hybrid_domain.main(words(base)) == 2
    assert "--domain dark=dark: 1 picture" in capsys.readouterr().err
    Path("dark/0.png").unlink()
    assert hybrid_domain.main(words(base)) == 2
    assert "--domain dark=dark: the folder has no files" in capsys.readouterr().err


def test_copies_of_a_picture_are_no_pictures_of_a_domain(base: Path, place: Path, capsys) -> None:
    for number in (1, 2):
        shutil.copy("dark/0.png", f"dark/{number}.png")
    assert hybrid_domain.main(words(base)) == 2
    assert "--domain dark=dark: 1 picture in 3 files, from which nothing can be told" in capsys.readouterr().err
    for number in (0, 1):
        shutil.copy(f"warm/{number}.png", f"dark/{number}.png")
    Path("dark/2.png").unlink()
    Image.open("dark/0.png").save("dark/0.bmp")  # another file of the same picture
    assert hybrid_domain.main(words(base)) == 2
    said = capsys.readouterr().err
    assert "--domain dark=dark: all its pictures are those of --domain warm=warm; give each domain pictures of" in said
    assert not Path("dreambooth-hybrid").exists()


def test_without_a_hybrid_its_options_are_refused(base: Path, place: Path, capsys) -> None:
    line = ["--pretrained_model_name_or_path", str(base), "--adapter", "lora", "--domain", "warm=warm", "dark=dark"]
    assert dreambooth.main(line) == 2
    assert "--domain has no effect without --adapter hybrid" in capsys.readouterr().err


def test_a_part_is_no_hybrid(place: Path, capsys) -> None:
    assert hybrid_domain.main(["--family", "hybrid"]) == 2
    assert "--family hybrid: a part is no hybrid itself; give one of" in capsys.readouterr().err


def test_a_rate_of_coefficients_is_refused_where_the_optimizer_has_its_own(place: Path, capsys) -> None:
    pytest.importorskip("prodigyopt")
    assert hybrid_domain.main(["--optimizer", "prodigy", "--coefficient_lr", "0.1"]) == 2
    assert "--coefficient_lr has no effect with --optimizer prodigy, which has a rate of" in capsys.readouterr().err


def test_a_family_beside_the_families_of_parts_is_refused(base: Path, capsys) -> None:
    parts = '{"warm": {"family": "lora"}, "dark": {"family": "loldu"}}'
    line = ["--pretrained_model_name_or_path", str(base), "--family", "loldu", "--parts", parts]
    assert hybrid_domain.main(line) == 2
    assert "--family has no effect with --parts, which say the family of each; leave it out" in capsys.readouterr().err
    _, adapter = dreambooth.parse(
        dreambooth.DreamBoothOptions, None, ["--adapter", "hybrid", *line, "--learning_rate", "1"]
    )
    assert adapter.parts["dark"]["family"] == "loldu"  # it has one: the rate is that of this family
