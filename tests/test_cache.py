"""Latents and embeddings between runs: found again by content, never taken for others, made again when damaged."""

from __future__ import annotations

import logging

import pytest
import torch
from PIL import Image

from tests.test_samples import Encoder
from train.bases import BaseOptions
from train.data import CachedImages, DataOptions, read_folder
from train.data.cache import Store, check_cache_dir, fingerprint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.linear_gradient("L").rotate(90 * i).resize((20 + i, 16)).save(tmp_path / f"pictures/{i}.png")
    return tmp_path


def run(folder, base, **options):
    settings = {"instance_prompt": "1", "center_crop": True} | options
    options = DataOptions(instance_data_dir=folder / "pictures", latents_cache_dir=folder / "cache", **settings)
    data = CachedImages(base, read_folder(options, 16, 0).examples, options)
    return base.images, len(base.texts), data.batch([0, 1, 2], 0)


def encoders(seed=0):
    torch.manual_seed(seed)
    return Encoder()


def test_another_run_encodes_nothing_and_gets_the_same(folder):
    images, texts, batch = run(folder, encoders())
    assert (images, texts) == (3, 1)
    images, texts, again = run(folder, encoders())
    assert (images, texts) == (0, 0)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    in_memory = CachedImages(
        encoders(),
        read_folder(
            DataOptions(instance_data_dir=folder / "pictures", instance_prompt="1", center_crop=True), 16, 0
        ).examples,
    ).batch([0, 1, 2], 0)
    assert all(torch.equal(batch[name], in_memory[name]) for name in batch)
    assert not list((folder / "cache").rglob(".part-*"))


def test_a_cache_is_not_taken_for_another_encoder_picture_text_or_option(folder):
    run(folder, encoders())
    base = encoders()
    with torch.no_grad():
        base.pipeline.components["vae"].weight[0, 0] += 1e-3
    assert run(folder, base)[:2] == (3, 0)
    base = encoders()
    base.pipeline.components["text_encoder"].bias.data += 1e-3
    assert run(folder, base)[:2] == (0, 1)
    base = encoders()
    base.options = BaseOptions(max_sequence_length=7)
    assert run(folder, base)[:2] == (0, 1)
    base = encoders()
    base.pipeline.components["vae"].half()
    assert run(folder, base)[:2] == (3, 0)
    assert run(folder, encoders(), instance_prompt="2")[:2] == (0, 1)
    assert run(folder, encoders(), image_interpolation_mode="nearest")[0] > 0
    Image.new("RGB", (16, 16), "red").save(folder / "pictures/1.png")
    assert run(folder, encoders())[:2] == (1, 0)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 1])],
    ids=["cut", "empty", "one bit"],
)
def test_a_damaged_entry_is_made_again_with_a_word(folder, damage, caplog):
    _, _, batch = run(folder, encoders())
    for file in (folder / "cache").rglob("*.safetensors"):
        file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING, "train"):
        images, texts, again = run(folder, encoders())
    assert (images, texts) == (3, 1)
    assert len({line for line in caplog.messages if "is damaged and made again" in line}) == 4
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert run(folder, encoders())[:2] == (0, 0)


def test_an_entry_that_is_damaged_later_is_an_error(tmp_path):
    store = Store(tmp_path)
    store.add("key", lambda: {"value": torch.ones(3)})
    assert torch.equal(store["key"]["value"], torch.ones(3))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ValueError, match=r"key.safetensors does not hold what was written to it; delete it"):
        store["key"]


def test_a_fingerprint_is_of_names_shapes_dtypes_and_values():
    def of(module):
        return fingerprint({"vae": module})

    module = encoders().pipeline.components["vae"]
    assert of(module) == of(encoders().pipeline.components["vae"])
    assert of(module) != fingerprint({"other": module})
    assert of(module) != of(encoders(1).pipeline.components["vae"])
    large = torch.nn.Linear(1000, 1000, dtype=torch.bfloat16)
    before = of(large)
    with torch.no_grad():
        large.weight.mul_(1.01)
    assert of(large) != before


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    check_cache_dir(tmp_path / "new" / "er")
    check_cache_dir(None)
    assert not (tmp_path / "new").exists()
    with pytest.raises(
        ValueError, match=r"--latents_cache_dir \S+/file/x: \S+/file is a file; give the name of a folder"
    ):
        check_cache_dir(tmp_path / "file" / "x")
