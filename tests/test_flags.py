"""Command lines and configuration files of the scripts: layers, refusals, and the way back."""

from __future__ import annotations

import dataclasses
import re

import pytest

from diffusion_adapters import FAMILIES
from train import flags
from train.dreambooth import DreamBoothOptions

OTHER = "/tmp/some_base"  # a name without a file in train/configs


def parse(*argv):
    return flags.parse(DreamBoothOptions, "about", argv)


def message(*argv):
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path):
    def write(text):
        (tmp_path / "run.toml").write_text(text)
        return str(tmp_path / "run.toml")

    return write


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_a_family_do_not_collide_with_the_scripts(family):
    own = {field.name for field in dataclasses.fields(FAMILIES[family].Config)}
    assert not own & {field.name for field in dataclasses.fields(DreamBoothOptions)}


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_family(family):
    config, adapter = parse("--adapter", family, "--pretrained_model_name_or_path", OTHER)
    assert config.adapter == family
    assert adapter == FAMILIES[config.family if family == flags.HYBRID else family].Config()


def test_each_layer_overrides_the_one_before(toml):
    path = toml('rank = 3\nmax_train_steps = 7\nlearning_rate = 1e-3\nadapter = "lora"\n[lora]\nlearning_rate = 2e-3\n')
    base = ("--pretrained_model_name_or_path", OTHER)
    config, adapter = parse(*base, "--config", path, "--max_train_steps", "9")
    assert (config.adapter, adapter.rank) == ("lora", 3)
    assert (config.max_train_steps, config.learning_rate) == (9, 2e-3)
    assert config.train_batch_size == DreamBoothOptions().train_batch_size
    known = flags.known_good("pipelines/pocket")
    assert parse()[0].max_train_steps == known["max_train_steps"]
    assert parse(*base)[0].max_train_steps == DreamBoothOptions().max_train_steps


@pytest.mark.parametrize("file", sorted(flags.CONFIGS.glob("*.toml")), ids=lambda file: file.name)
def test_known_good_configurations_are_valid_for_every_family(file):
    for family in FAMILIES:
        flags.for_family(flags.read_config(file), family, DreamBoothOptions, file.name)
        config, _ = parse("--config", str(file), "--adapter", family)
        assert config.adapter == family
    assert file.read_text().startswith("# accelerate launch train/")


def test_the_resolved_configuration_repeats_the_run(toml):
    argv = ("--adapter", "lora", "--rank", "2", "--target_modules", "to_q", "attn2.to_k", "--random_flip")
    first = parse(*argv, "--instance_prompt", 'a "quoted" photo of sks 猫 \\', "--learning_rate", "1e-5")
    again = parse("--config", toml(flags.to_toml(*first)))
    assert again == first


def test_help_shows_the_flags_of_the_chosen_family_alone(capsys):
    own = {name: {f.name for f in dataclasses.fields(FAMILIES[name].Config)} for name in FAMILIES}
    for family in FAMILIES:
        with pytest.raises(SystemExit) as caught:
            parse("--adapter", family, "--help")
        assert caught.value.code == 0
        text = capsys.readouterr().out
        of = "lora" if family == flags.HYBRID else family  # a hybrid's options are those of its parts
        assert f"options of --{'adapter' if of == family else 'family'} {of}" in text
        assert all(re.search(rf"^  --{name}\b", text, re.M) for name in own[of])
        others = set().union(*own.values()) - own[of]
        assert not [name for name in others if re.search(rf"^  --{name}\b", text, re.M)]


def test_aliases_are_resolved():
    for family in FAMILIES:
        for alias in FAMILIES.aliases(family):
            assert parse("--adapter", alias)[0].adapter == family


def test_refusals_say_what_is_nearest(toml):
    assert message("--adapter", "lorra").startswith("unknown adapter family 'lorra', did you mean 'lora'? available: ")
    lora = ("--adapter", "lora")
    assert message(*lora, "--train_batchsize", "2") == (
        "unknown flag --train_batchsize, did you mean '--train_batch_size'? --help lists all"
    )
    assert message(*lora, "pictures").startswith("unexpected argument 'pictures'; every value follows its flag")
    assert message(*lora, "--rank", "four") == "argument --rank: invalid int value: 'four'"
    assert message(*lora, "--rank", "0") == "rank must be at least 1, got 0"
    assert message(*lora, "--lr_scheduler", "cosin").startswith("argument --lr_scheduler: invalid choice: 'cosin'")
    assert message(*lora, "--config", "absent.toml") == "no configuration file at absent.toml"
    assert "is not a TOML file: " in message(*lora, "--config", toml("rank = = 3"))
    path = toml("rnak = 3")
    assert message(*lora, "--config", path) == f"{path}: unknown option 'rnak' for --adapter lora, did you mean 'rank'?"
    path = toml("[lorra]\nrank = 3")
    assert message(*lora, "--config", path).startswith(f"{path}: table [lorra]: unknown adapter family 'lorra'")
    assert message(*lora, "--config", toml("rank = [3]")).startswith("rank must be int, got [3]")


def test_a_flag_of_another_family_is_named():
    own = {name: {f.name for f in dataclasses.fields(FAMILIES[name].Config)} for name in FAMILIES}
    (family, flag) = next((name, min(own[name] - own["lora"])) for name in FAMILIES if own[name] - own["lora"])
    assert message("--adapter", "lora", f"--{flag}", "1").startswith(f"flag --{flag} belongs to --adapter ")
    assert message("--adapter", "lora", f"--{flag}=1").startswith(f"flag --{flag} belongs to --adapter ")
    assert own[family]


def test_an_option_that_is_a_table_is_json_on_the_command_line_and_a_table_in_files(toml):
    parts = '{"sketch": {"family": "loldu", "rank": 2}, "night": {"family": "lora"}}'
    script, adapter = parse("--adapter", "hybrid", "--parts", parts)
    assert adapter.domains == ("sketch", "night")
    assert parse("--config", toml(flags.to_toml(script, adapter))) == (script, adapter)
    _, adapter = parse("--config", toml('adapter = "hybrid"\n[hybrid.parts.sketch]\nfamily = "lora"\nrank = 3\n'))
    assert adapter.parts["sketch"]["rank"] == 3
    assert "{ is not JSON" in message("--adapter", "hybrid", "--parts", "{")
    assert "must be a JSON object" in message("--adapter", "hybrid", "--parts", "[1]")
    assert "'sketch': unknown adapter family 'x'" in message(
        "--adapter", "hybrid", "--parts", '{"sketch": {"family": "x"}}'
    )
