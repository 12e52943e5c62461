"""What other programs read of our files, and that it says nothing of the machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from safetensors import safe_open
from torch import nn

from diffusion_adapters import add_adapter, export_lora, save_adapter
from diffusion_adapters.file import describe_base
from diffusion_adapters.hooks import find_adapter_set
from diffusion_adapters.labels import ARCHITECTURES, architecture, labels
from tests.hosts import pipeline, small, stir

KOHYA = ("ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_tag_frequency")
SPEC = ("sai_model_spec", "architecture", "implementation", "title", "resolution", "date", "trigger_phrase")


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("family", ["lora", "wara"])
def test_the_file_and_its_export_are_labelled(tmp_path, family):
    pipe = pipeline()
    stir(add_adapter(pipe, "pet", family, **small(family)).parameters())
    facts = {"steps": 7, "pictures": 3, "seed": 1, "resolution": 512, "learning_rate": 1e-4, "train_batch_size": 2}
    save_adapter(pipe, "pet", tmp_path / "own.safetensors", trigger="a photo of sks cat", training=facts)
    report = export_lora(pipe, "pet", tmp_path / "plain.safetensors")
    own, plain = header(tmp_path / "own.safetensors"), header(tmp_path / "plain.safetensors")
    for found, file in ((own, "own"), (plain, "plain")):
        assert all(isinstance(value, str) and value for value in found.values())
        assert {f"modelspec.{name}" for name in SPEC} | set(KOHYA) <= set(found)
        assert str(tmp_path) not in json.dumps(found)
        assert found["modelspec.trigger_phrase"] == "a photo of sks cat"
        assert json.loads(found["ss_tag_frequency"]) == {"dreambooth": {"a photo of sks cat": 3}}
        data = (tmp_path / f"{file}.safetensors").read_bytes()
        digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
        assert (found["sshs_model_hash"], found["modelspec.hash_sha256"]) == (digest, f"0x{digest}")
    assert own["modelspec.architecture"] == f"UNet2DConditionModel/{family}"
    assert (own["ss_network_module"], own["ss_base_model_version"]) == (
        f"diffusion_adapters.{family}",
        "UNet2DConditionModel",
    )
    assert (own["ss_steps"], own["ss_seed"], own["ss_resolution"]) == ("7", "1", "(512, 512)")
    assert json.loads(own["ss_network_args"])["family"] == family
    assert plain["modelspec.architecture"] == "UNet2DConditionModel/lora"
    assert (plain["ss_network_module"], plain["ss_network_dim"]) == ("networks.lora", str(report.rank))


def test_architectures_are_told_apart():
    class Width:
        def __init__(self, width):
            self.cross_attention_dim = width

    def made(name, width=None):
        module = type(name, (nn.Module,), {})()
        module.config = Width(width)
        return module

    assert architecture(made("UNet2DConditionModel", 768)) == ("stable-diffusion-v1", "sd_v1")
    assert architecture(made("UNet2DConditionModel", 2048))[1] == "sdxl_base_v1-0"
    assert architecture(made("UNet2DConditionModel", 32)) == ("UNet2DConditionModel",) * 2
    assert architecture(made("SomethingNew")) == ("SomethingNew",) * 2
    import diffusers

    assert all(hasattr(diffusers, name) for name in ARCHITECTURES)


def test_what_is_not_known_is_left_out():
    pipe = pipeline()
    add_adapter(pipe, "pet", "lora", rank=1)
    own = find_adapter_set(pipe.unet)
    found = labels(dataclasses.replace(own.infos["pet"], trigger=None), describe_base(pipe.unet), "pet")
    assert not {"modelspec.trigger_phrase", "ss_tag_frequency", "ss_steps", "ss_seed"} & set(found)
    assert found["modelspec.resolution"] == "unknown"
    assert "None" not in found.values()
