"""Masks beside pictures, in folders and in the alpha channel, cut as their pictures are; those that do not fit."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.folders import GREEN, RED, half_mask, message, read, save


def test_masks_are_found_beside_in_a_folder_and_in_the_alpha_channel(tmp_path):
    pictures = tmp_path / "pictures"
    for name in "abc":
        save(pictures / f"{name}.png")
    half_mask().save(pictures / "a.mask.png")
    clear = Image.new("RGBA", (16, 16), (*RED, 255))
    clear.putalpha(half_mask())
    clear.save(pictures / "b.png")
    found = read(pictures, masked_loss=True)
    assert {example.name: len(example.masks) for example in found.examples} == {"a.png": 1, "b.png": 1, "c.png": 0}
    for example in found.examples[:2]:
        assert np.array_equal(np.asarray(example.masks[0]), np.asarray(half_mask()))
    assert "  2 masks, 1 picture without one" in list(found.report())
    ignored = read(pictures)
    assert not any(example.masks for example in ignored.examples)
    assert ignored.refused == {"a.mask.png": "the mask of a.png, which --masked_loss would use"}

    masks = tmp_path / "masks"
    masks.mkdir()
    half_mask().convert("RGB").save(masks / "c.jpg", quality=100)
    half_mask().save(masks / "d.png")
    found = read(pictures, masked_loss=True, mask_data_dir=masks)
    assert [len(example.masks) for example in found.examples] == [1, 1, 1]
    assert found.refused["masks/d.png"] == "a mask of no picture"


def test_a_mask_is_cut_as_its_picture_is(tmp_path):
    image = Image.new("RGB", (64, 32), RED)
    image.paste(GREEN, (10, 0, 30, 20))
    image.save(tmp_path / "a.png")
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (10, 0, 30, 20))
    mask.save(tmp_path / "a.mask.png")
    (example,) = read(tmp_path, masked_loss=True, random_flip=True, cache_variants=6).examples
    assert len(example.images) == len(example.masks) > 4
    for picture, own in zip(example.images, example.masks, strict=True):
        green = np.asarray(picture, float)[..., 1]
        expected = ((green - 30) / 170).clip(0, 1) * 255
        assert np.abs(np.asarray(own, float) - expected).mean() < 6  # they are resized by different filters


def test_masks_that_do_not_fit_stop_the_run(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    half_mask((8, 16)).save(tmp_path / "a.mask.png")
    place = f"{tmp_path}/a.mask.png of a.png"
    said = message(tmp_path, masked_loss=True)
    assert said == f"{place} has 8 x 16 pixels, the picture 16 x 16; make them equal"
    Image.new("L", (16, 16), 0).save(tmp_path / "a.mask.png")
    said = message(tmp_path, masked_loss=True)
    assert said == f"{place} is black everywhere, so that nothing would be trained; leave out mask or picture"
    (tmp_path / "a.mask.png").write_bytes(b"no picture")
    assert message(tmp_path, masked_loss=True) == f"{place}: not an image that Pillow can read"
    (tmp_path / "a.mask.png").unlink()
    said = f"--masked_loss: no picture of --instance_data_dir {tmp_path} has a mask; add NAME.mask.png beside"
    assert message(tmp_path, masked_loss=True).startswith(said)
    masks = {"masked_loss": True, "mask_data_dir": tmp_path / "masks"}
    assert message(tmp_path, **masks) == f"--mask_data_dir {tmp_path}/masks: no such folder"
    (tmp_path / "masks").mkdir()
    assert message(tmp_path, **masks).startswith(f"--mask_data_dir {tmp_path}/masks: no mask is named as a picture of")
