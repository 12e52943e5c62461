"""Pivotal tuning: new tokens trained with an adapter, from the command line to the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusion_adapters import add_text_adapter, load_adapter, save_adapter
from diffusion_adapters.cli import main as command_line
from diffusion_adapters.file import read_adapter
from diffusion_adapters.tokens import token_parts
from tests import pipelines, test_dreambooth
from tests.test_dreambooth import arguments
from tests.test_tokens import attached
from train import checkpoint, dreambooth, pilot, text
from train.flags import parse

base, place = test_dreambooth.base, test_dreambooth.place

TI = ("--adapter", "lora", "--rank", "2", "--train_text_encoder_ti", "--instance_prompt", "a photo of TOK cat")
QUICK = ("--num_validation_images", "0", "--learning_rate", "0.01")


def go(base, folder, *more, stop=lambda: False):
    """Run the script's generator; the adapter's file, and each step's rows."""
    config, adapter = parse(dreambooth.DreamBoothOptions, None, arguments(base, *TI, *QUICK, *more))
    config = dreambooth.dataclasses.replace(config, output_dir=Path(folder))
    list(dreambooth.run(config, adapter, stop))
    return read_adapter(Path(folder) / "adapter.safetensors")


def rows(file):
    return file.tokens["text_encoder"].rows


def same(one, other):
    assert torch.equal(rows(one), rows(other))
    for component, places in one.tensors.items():
        for path, tensors in places.items():
            assert all(torch.equal(value, other.tensors[component][path][name]) for name, value in tensors.items())


@pytest.mark.parametrize(
    "more", [(), ("--train_text_encoder", "--gradient_accumulation_steps", "2"), ("--use_ema",)], ids=str
)
def test_it_goes_on_exactly_before_and_after_the_pivot(base, place, more):
    """Six steps of which four train the tokens; stopped after two, and after five."""
    settings = ("--max_train_steps", "6", "--train_text_encoder_ti_frac", "0.7", "--checkpointing_steps", "1", *more)
    whole = go(base, "whole", *settings)
    parts = {
        step: rows(read_adapter(path / checkpoint.ADAPTER)) for step, path in checkpoint.steps(place / "whole").items()
    }
    moved = [not torch.equal(parts[step], parts[step + 1]) for step in range(1, 6)]
    if "--use_ema" not in more:
        assert moved == [True, True, True, False, False]
    for steps in (2, 5):
        calls = iter([False] * (steps - 1) + [True])
        go(base, f"parts-{steps}", *settings, stop=calls.__next__)
        assert max(checkpoint.steps(place / f"parts-{steps}")) == steps
        same(whole, go(base, f"parts-{steps}", *settings, "--resume_from_checkpoint", "latest"))


def test_the_rows_keep_their_norm_and_what_is_not_trained_stays(base, place, monkeypatch):
    far = ("--train_text_encoder_ti_frac", "1", "--text_encoder_lr", "0.05", "--max_train_steps", "12")
    kept = rows(go(base, "kept", *far)).std()
    monkeypatch.setattr(text, "keep_norm", lambda pipeline: None)
    free = rows(go(base, "free", *far)).std()
    start = rows(go(base, "start", *far, "--train_text_encoder_ti_frac", "0")).std()
    assert start < kept < (start + free) / 2


def test_as_a_user_types_it(base, place, capsys):
    more = (
        "--token_abstraction",
        "TOK",
        "NEW",
        "--num_new_tokens_per_abstraction",
        "3",
        "--initializer_concept",
        "cat",
    )
    given = arguments(base, *TI, "--instance_prompt", "a photo of TOK and NEW cat", *more, "--output_dir", "out")
    assert dreambooth.main(given) == 0
    assert capsys.readouterr().err == ""
    assert (place / "out" / "pytorch_lora_weights_emb.safetensors").is_file()
    assert 'token_abstraction = ["TOK", "NEW"]' in (place / "out" / "config.toml").read_text("utf-8")
    file = str(place / "out" / "adapter.safetensors")
    assert command_line(["inspect", file]) == 0
    assert "TOK TOK_1 TOK_2 NEW NEW_1 NEW_2 in text_encoder" in capsys.readouterr().out
    draw = ["--base", str(base), "--prompt", "a photo of TOK cat in water", "--steps", "2"]
    for name, adapters in (("with.png", ["--adapter", file]), ("without.png", [])):
        assert command_line(["generate", *adapters, *draw, "--output", name]) == 0
    assert (place / "with.png").read_bytes() != (place / "without.png").read_bytes()
    again = ("--config", "out/config.toml", "--output_dir", "again")
    assert dreambooth.main(list(again)) == 0
    same(read_adapter(file), read_adapter(place / "again" / "adapter.safetensors"))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--instance_prompt", "a photo of cat"), "--token_abstraction TOK: no prompt or caption has that word; write"),
        (("--no-train_text_encoder_ti", "--initializer_concept", "cat"), "--initializer_concept cat has no effect"),
        (("--token_abstraction", "cat"), "token 'cat' is one that the tokenizer knows; a new one needs another name"),
        (("--initializer_concept", " "), "' ' is no word that new tokens could start from"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(base, place, capsys, more, line):
    assert dreambooth.main(arguments(base, *TI, *more)) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "flag", "line"),
    [
        (
            "sd3",
            "--train_text_encoder_ti",
            "this base has a CLIPTextModelWithProjection, a CLIPTextModelWithProjection, a T5",
        ),
        ("sana", "--train_text_encoder_ti", "this base has a Gemma2Model; new tokens go into CLIP text encoders alone"),
        ("sana", "--train_text_encoder", "this base has a Gemma2Model; leave it out"),
    ],
)
def test_other_text_encoders_are_refused_before_anything_is_loaded(name, flag, line, place, capsys, monkeypatch):
    monkeypatch.setattr(dreambooth, "load_base", lambda *_: pytest.fail("loaded"))
    folder = pipelines.save(name, place / name)
    assert dreambooth.main(arguments(folder, *TI[:4], "--instance_prompt", "a photo of TOK cat", flag)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {flag}: this base has")
    assert line in said
    assert len(said.splitlines()) == 1


def test_the_pick_of_the_pilot_has_its_text_parts(base, tmp_path):
    """`load_values` gives back all that a look has saved."""

    def made(seed):
        pipe = StableDiffusionPipeline.from_pretrained(base)
        attached(pipe)
        add_text_adapter(pipe, "pet", 2)
        torch.manual_seed(seed)
        with torch.no_grad():
            for value in [*token_parts(pipe, "pet")["text_encoder"].rows, *pipe.text_encoder.parameters()]:
                value.add_(torch.randn_like(value))
        return pipe

    file = save_adapter(made(1), "pet", tmp_path / "pick.safetensors")
    live = made(2)
    pilot.load_values(live, file)
    again = read_adapter(save_adapter(live, "pet", tmp_path / "again.safetensors"))
    same(read_adapter(file), again)
    part, kept = read_adapter(file).text["text_encoder"].tensors, again.text["text_encoder"].tensors
    assert all(torch.equal(value, kept[name]) for name, value in part.items())


def test_two_encoders_of_sdxl_are_trained(place, capsys):
    folder = pipelines.save("sdxl", place / "sdxl")
    file = go(folder, "out", "--resolution", "64", "--max_train_steps", "3", "--train_text_encoder_ti_frac", "1")
    start = go(folder, "start", "--resolution", "64", "--max_train_steps", "3", "--train_text_encoder_ti_frac", "0")
    assert list(file.tokens) == ["text_encoder", "text_encoder_2"]
    for component, part in file.tokens.items():
        assert not torch.equal(part.rows, start.tokens[component].rows)
    load_adapter(pipelines.build("sdxl"), file.path)
