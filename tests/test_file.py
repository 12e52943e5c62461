"""The adapter file: what stands in it, and that it comes back whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from diffusion_adapters import (
    FAMILIES,
    add_adapter,
    get_active_adapters,
    list_adapters,
    load_adapter,
    save_adapter,
    set_adapters,
)
from diffusion_adapters.file import FORMAT, FORMAT_VERSION, read_adapter
from tests.files import parts, saved
from tests.hosts import HOST, build, pipeline, run, small, stir

ROOT = Path(__file__).parents[1]

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(tmp_path)


@every_family
def test_header_says_everything(tmp_path: Path, family: str) -> None:
    pipe = pipeline()
    add_adapter(pipe, "one", family, target_modules=["attn2"], **small(family))
    path = save_adapter(
        pipe, "one", tmp_path / "sub" / "one.safetensors", trigger="a sks cat", training={"steps": 7, "resolution": 16}
    )
    with safetensors.safe_open(path, "pt") as stream:
        metadata, keys = stream.metadata(), list(stream.keys())
    document = json.loads(metadata[FORMAT])
    config = FAMILIES[family].Config(**small(family)).as_dict()
    (base,) = document["base"].values()
    assert document["format"] == "diffusion-adapters"
    assert document["format_version"] == FORMAT_VERSION == 1
    assert document["family"] == family
    assert document["config"] == json.loads(json.dumps(config))
    assert document["target_modules"] == ["attn2"]
    assert list(document["base"]) == ["unet"]
    assert base["class"] == "UNet2DConditionModel"
    assert re.fullmatch(r"[0-9a-f]{16}", base["fingerprint"])
    assert base["name"]
    assert os.sep not in base["name"]  # a folder of the machine it was trained on is nobody's business
    assert document["trigger"] == "a sks cat"
    assert document["training"] == {"steps": 7, "resolution": 16}
    assert document["created_by"].startswith("diffusion-adapters ")
    assert metadata["modelspec.sai_model_spec"]
    assert metadata["modelspec.title"] == "one"
    assert metadata["modelspec.trigger_phrase"] == "a sks cat"
    assert metadata["modelspec.resolution"] == "16"
    assert family in metadata["modelspec.architecture"]
    assert all(key.startswith("unet.") and ".attn2." in key for key in keys)
    info = read_adapter(path).info
    assert (info.family, info.trigger, info.target_modules) == (family, "a sks cat", ("attn2",))
    assert info.config == FAMILIES[family].Config(**small(family))
    assert info.training == {"steps": 7, "resolution": 16}


def test_settings_survive_loading_and_saving_again(file: Path, model: nn.Module, tmp_path: Path) -> None:
    first = saved(tmp_path, trigger="a sks cat", training={"steps": 7})
    load_adapter(model, first, "one")
    again = save_adapter(model, "one", tmp_path / "again.safetensors")
    tensors, _, document = parts(first)
    tensors_again, _, document_again = parts(again)
    assert document_again == document
    assert list(tensors_again) == list(tensors)
    assert all(torch.equal(tensors_again[key], tensors[key]) for key in tensors)


def test_name_is_the_stem_unless_given(tmp_path: Path, model: nn.Module) -> None:
    path = saved(tmp_path).rename(tmp_path / "my.cat.safetensors")
    assert load_adapter(model, path) == "my_cat"
    assert load_adapter(model, path, "other") == "other"
    assert_refused_name = pytest.raises(ValueError, match="adapter name 'my_cat' is already in use")
    with assert_refused_name:
        load_adapter(model, path)
    assert list(list_adapters(model)) == ["my_cat", "other"]


def test_loading_adds_to_what_is_active(file: Path, model: nn.Module) -> None:
    load_adapter(model, file, "one", adapter_weight=0.5)
    load_adapter(model, file, "two")
    assert get_active_adapters(model) == {"one": 0.5, "two": 1.0}


@every_family
def test_a_loaded_adapter_trains_only_if_asked(tmp_path: Path, model: nn.Module, family: str) -> None:
    path = saved(tmp_path, family)
    from diffusion_adapters.attach import adapter_sets

    load_adapter(model, path, "frozen")
    load_adapter(model, path, "trained", trainable=True)
    adapter_set = adapter_sets(model)["transformer"]
    for name, trained in (("frozen", False), ("trained", True)):
        assert {p.requires_grad for adapter in adapter_set.of(name).values() for p in adapter.parameters()} == {trained}


FRESH = """
import sys, torch
from diffusion_adapters import load_adapter, set_adapters
from tests.hosts import HOST, build, run
host, out, *files = sys.argv[1:]
model = build(host)
names = [load_adapter(model, file) for file in files]
set_adapters(model, names, [0.5 + 0.1 * i for i in range(len(names))])
torch.save(run(model, host), out)
"""


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    model = build(HOST)
    for family in FAMILIES:
        adapter_set = add_adapter(model, family, family, **small(family))
    stir(adapter_set.parameters())
    files = [save_adapter(model, family, tmp_path / f"{family}.safetensors") for family in FAMILIES]
    set_adapters(model, list(FAMILIES), [0.5 + 0.1 * i for i in range(len(FAMILIES))])
    command = [sys.executable, "-c", FRESH, HOST, str(tmp_path / "output"), *map(str, files)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=900)
    assert torch.equal(torch.load(tmp_path / "output"), run(model, HOST))
