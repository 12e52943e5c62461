"""Each flag of `dreambooth.py --help` is in a test or in a listed run; those that no other test has are tried here."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from torch import nn

from diffusion_adapters import FAMILIES
from diffusion_adapters.file import read_adapter
from tests.test_dreambooth import arguments, base, place  # noqa: F401
from train import dreambooth
from train.bases import BaseOptions, inspect_base, load_base
from train.data import DataOptions, read_folder
from train.flags import CONFIGS, parse
from train.optimizers import OPTIMIZERS, OptimizerOptions
from train.settings import TrainOptions, make_optimizer

HERE = Path(__file__)
USES = {path: path.read_text("utf-8") for path in [*HERE.parent.rglob("*.py"), *CONFIGS.rglob("*.toml")]}


@functools.cache
def used_in(name: str) -> list[str]:
    """Files that give the flag: on a command line, as an option by name, or in a configuration of a run."""
    given = re.compile(rf"--(?:no-)?{name}\b|\b{name}=[^=]|['\"]{name}['\"]|^{name} = ", re.M)
    return sorted(
        str(path.relative_to(HERE.parents[1])) for path, text in USES.items() if name in text and given.search(text)
    )


def helped(family: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        parse(dreambooth.DreamBoothOptions, dreambooth.__doc__, ["--adapter", family, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_each_flag_in_the_help_is_used_somewhere(family, capsys):
    text = helped(family, capsys)
    flags = re.findall(r"^  --([a-z0-9_]+)", text, re.M)
    own = FAMILIES["lora" if family == "hybrid" else family].Config  # a hybrid's options are those of its parts
    declared = {f.name for kind in (dreambooth.DreamBoothOptions, own) for f in dataclasses.fields(kind)}
    assert set(flags) == declared | {"config"}
    table = {name: used_in(name) for name in flags}
    assert not [name for name, files in table.items() if not files]


def test_the_help_is_in_groups_and_shows_the_defaults_in_use(capsys):
    text = helped("lora", capsys)
    usage, titles = text.split("\n\n")[0], re.findall(r"^(\S.*):$", text, re.M)
    assert len(usage.splitlines()) < 4
    groups = [getattr(kind, "title", None) for kind in dreambooth.DreamBoothOptions.__bases__]
    assert titles[-len(groups) - 1 :] == [*groups, "options of --adapter lora"]
    words = " ".join(text.split())
    assert "--train_batch_size N pictures per step, process and accumulation (default: 4)" in words
    assert "--learning_rate X learning rate (default: " in words  # of pocket, in place of what it is without
    assert "--validation_adapter_weights X [X ...] weights of the adapter in the pictures made while training" in words
    assert "0 is the base (default: 1.0)" in words
    assert "(default: False)" not in words
    assert not re.search(r"\(default: [^)]*\) \(default: ", words)
    for kind in (dreambooth.DreamBoothOptions, *(FAMILIES[name].Config for name in FAMILIES)):
        assert all(field.metadata["help"].strip() for field in dataclasses.fields(kind))


def made(total=10, **options):
    rate = nn.Parameter(torch.ones(3))
    return make_optimizer(TrainOptions(**options), [{"params": [rate], "lr": 1.0}], 1.0, total)


def test_what_adam_is_told():
    optimizer, _ = made(adam_beta1=0.5, adam_beta2=0.75, adam_epsilon=0.125, adam_weight_decay=0.25)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.75), 0.125, 0.25)


def test_what_prodigy_is_told():
    told = {"prodigy_decouple": False, "prodigy_use_bias_correction": False, "prodigy_safeguard_warmup": False}
    settings = OPTIMIZERS["prodigy"].settings(OptimizerOptions(optimizer="prodigy", prodigy_beta3=0.5, **told))
    names = ("beta3", "decouple", "use_bias_correction", "safeguard_warmup")
    assert [settings[name] for name in names] == [0.5, False, False, False]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 1}, 0.5),
        ({"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2}, 1.0),
        ({"lr_scheduler": "polynomial", "lr_power": 1.0}, 0.5),
        ({"lr_scheduler": "polynomial", "lr_power": 2.0}, 0.25),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 20}, 0.25),
    ],
)
def test_the_rate_half_way(options, expected):
    optimizer, schedule = made(**options)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(expected, abs=1e-6)


def trained(base, folder, *more):  # noqa: F811
    quick = ("--adapter", "lora", "--rank", "2", "--num_validation_images", "0", "--checkpointing_steps", "0")
    assert dreambooth.main(arguments(base, *quick, "--output_dir", folder, *more)) == 0
    tensors = read_adapter(Path(folder) / "adapter.safetensors").tensors["unet"]
    return torch.cat([value.flatten() for path in sorted(tensors) for _, value in sorted(tensors[path].items())])


def test_the_average_and_the_norm(base, place):  # noqa: F811
    plain = trained(base, "plain")
    assert torch.equal(trained(base, "last", "--use_ema", "--ema_decay", "0"), plain)
    assert not torch.equal(trained(base, "mean", "--use_ema", "--ema_decay", "0.9"), plain)
    steps = ("--optimizer", "torch.optim.SGD", "--learning_rate", "1")
    begun = trained(base, "begun", *steps, "--learning_rate", "1e-30")
    moved = (trained(base, "bound", *steps, "--max_grad_norm", "1e-3") - begun).norm()
    assert 0 < moved <= 2.01e-3  # two steps


def test_masks_by_a_column_of_the_metadata(place):  # noqa: F811
    Image.new("L", (256, 256), 255).save("mask.png")
    line = {"file_name": "0.png", "text": "a cat", "seen": "../mask.png"}
    Path("cat/metadata.jsonl").write_text(json.dumps(line))
    options = DataOptions(instance_data_dir=Path("cat"), masked_loss=True, mask_column="seen")
    assert [bool(example.masks) for example in read_folder(options, 16, 0).examples] == [True]
    options = dataclasses.replace(options, masked_loss=False)
    assert [bool(example.masks) for example in read_folder(options, 16, 0).examples] == [False]


def test_a_variant_and_a_revision_of_a_base(base, tmp_path, monkeypatch):  # noqa: F811
    diffusers.DiffusionPipeline.from_pretrained(base).save_pretrained(tmp_path / "half", variant="fp16")
    options = BaseOptions(pretrained_model_name_or_path=str(tmp_path / "half"), variant="fp16", revision="older")
    asked = []
    real = diffusers.DiffusionPipeline.load_config.__func__

    def load_config(cls, *args, **kwargs):
        asked.append(kwargs.get("revision"))
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", classmethod(load_config))
    info = inspect_base(options)
    assert asked[0] == "older"
    assert load_base(info, options, torch.device("cpu"), torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_base(info, dataclasses.replace(options, variant=None), torch.device("cpu"), torch.float32)
