"""Pictures, captions and masks of data sets on disk, and every mistake in naming them."""

from __future__ import annotations

import sys

import pytest

from tests.folders import half_mask, message, read, save, write_rows


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return library


def rows_of(datasets, tmp_path, **columns):
    paths = [str(save(tmp_path / f"{i}.png", colour=(50 * i, 0, 0))) for i in range(3)]
    rows = datasets.Dataset.from_dict({"image": paths, "text": ["none", "one", None], **columns})
    return rows.cast_column("image", datasets.Image())


def test_data_sets_on_disk(datasets, tmp_path):
    rows = rows_of(datasets, tmp_path, other=["x", "y", "z"])
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", colour=(50 * i, 0, 0))
    write_rows(tmp_path / "images", *[{"file_name": f"{i}.png", "text": t} for i, t in enumerate(("none", "one", ""))])
    for name in ("saved", "splits", "parquet", "images"):
        found = read(None, dataset_name=str(tmp_path / name))
        assert [example.prompt for example in found.examples] == ["none", "one", "a photo of sks cat"], name
        assert [example.images[0].getpixel((8, 8))[0] for example in found.examples] == [0, 50, 100]
    found = read(None, dataset_name=str(tmp_path / "saved"), caption_column="other")
    assert [example.prompt for example in found.examples] == ["x", "y", "z"]
    named = {"dataset_name": str(tmp_path / "parquet"), "dataset_config_name": "default"}
    assert len(read(None, **named).examples) == 3
    assert "cannot be loaded: " in message(None, **named | {"dataset_config_name": "other"})
    rows.rename_column("image", "photo").save_to_disk(tmp_path / "renamed")
    assert len(read(None, dataset_name=str(tmp_path / "renamed"), image_column="photo").examples) == 3


def test_masks_and_bad_cells_of_a_data_set(datasets, tmp_path):
    rows = rows_of(datasets, tmp_path)
    half_mask().save(tmp_path / "m.png")
    rows = rows.add_column("mask", [str(tmp_path / "m.png")] * 3).cast_column("mask", datasets.Image())
    rows.save_to_disk(tmp_path / "saved")
    found = read(None, dataset_name=str(tmp_path / "saved"), masked_loss=True)
    assert [len(example.masks) for example in found.examples] == [1, 1, 1]
    broken = {"image": [{"bytes": b"no picture", "path": None}, None]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(broken, features=features).save_to_disk(tmp_path / "broken")
    said = message(None, dataset_name=str(tmp_path / "broken"))
    assert "no picture can be read (row 0: not an image that Pillow can read; row 1: the row has no picture)" in said


def test_mistakes_in_the_name_of_a_data_set(datasets, tmp_path, monkeypatch):
    rows_of(datasets, tmp_path, number=[1, 2, 3]).save_to_disk(tmp_path / "saved")
    name, flag = str(tmp_path / "saved"), f"--dataset_name {tmp_path}/saved"
    said = f"--image_column picture: {flag} has no such column; it has image, text, number"
    assert message(None, dataset_name=name, image_column="picture") == said
    said = f"--caption_column prompt: {flag} has no such column; it has image, text, number"
    assert message(None, dataset_name=name, caption_column="prompt") == said
    assert message(None, dataset_name=name, image_column="number").startswith(f"{flag}: column number holds no pict")
    assert message(None, dataset_name=str(tmp_path / "0.png")).endswith(
        "0.png is a file; give the folder of a data set"
    )
    assert "cannot be loaded: " in message(None, dataset_name=str(tmp_path / "absent"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message(None, dataset_name=name) == f"{flag} needs the package datasets: pip install datasets"
