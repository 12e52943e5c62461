"""train/hybrid_domain.py: every way in which it can be told wrong, said in one line before anything is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import test_hybrid_domain
from tests.test_hybrid_domain import words
from train import dreambooth, hybrid_domain

base, place = test_hybrid_domain.base, test_hybrid_domain.place
PARTS = ["warm=warm.safetensors", "dark=dark.safetensors"]
WRONG = {
    "one domain": ({"domain": ["warm=warm"]}, "--domain warm=warm: a hybrid has at least 2 domains"),
    "a name twice": ({"domain": ["warm=warm", "warm=dark"]}, "--domain warm is given twice, as warm and as dark"),
    "no form": ({"domain": ["warm", "dark=dark"]}, "--domain warm: must be NAME=PATH"),
    "no folder": ({"domain": ["warm=warm", "dark=nowhere"]}, "nowhere: no such folder"),
    "no name": ({"domain": ["source=warm", "dark=dark"]}, "--domain source: not a name for a domain"),
    "a part too many": ({"part": ["cold=a.safetensors"]}, "domain cold has no --domain"),
    "a part without a file": ({"part": ["warm=a.safetensors", "dark=b.safetensors"]}, "no such file"),
    "no family": ({"family": "lorra"}, "did you mean 'lora'"),
    "no encoder": ({"encoder": ["nowhere/at/all"]}, "nowhere/at/all"),
    "levels": ({"lowest_level": 0.9}, "--lowest_level 0.9 must be below --highest_level 0.8"),
    "no steps for parts": ({"hybrid_start": 0.0}, "--hybrid_start 0 leaves no steps to train parts"),
    "a domain not drawn": (
        {"hybrid_start": 0.5},
        "--hybrid_start 0.5 of --max_train_steps 6, draw no picture of dark: give more of either",
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
    assert hybrid_domain.main(words(base, **told)) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not Path("dreambooth-hybrid/adapter.safetensors").exists()


def test_domains_with_too_few_pictures_are_refused(base: Path, place: Path, capsys) -> None:
    for number in (1, 2):
        Path(f"dark/{number}.png").unlink()
    assert hybrid_domain.main(words(base)) == 2
    assert "--domain dark=dark: 1 picture" in capsys.readouterr().err
    Path("dark/0.png").unlink()
    assert hybrid_domain.main(words(base)) == 2
    assert "--domain dark=dark: the folder has no files" in capsys.readouterr().err


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
