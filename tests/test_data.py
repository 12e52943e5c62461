"""Folders of real-world files: what is used, what is refused and why, and that every sample keeps its own caption."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from train import images
from train.data import CachedImages, DataOptions, read_folder, spread
from train.data.buckets import shuffled
from train.images import View, open_rgb, views

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


def picture(size=(40, 30), left=RED, right=BLUE) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def mean(image, box=None):
    return np.asarray(image.crop(box) if box else image, float).reshape(-1, 3).mean(0)


def near(image, x, y, colour, tolerance=12):
    return np.abs(np.asarray(image.getpixel((x, y)), float) - colour).max() <= tolerance


@pytest.fixture
def saved(tmp_path):
    def save(name, image, **settings):
        image.save(tmp_path / name, **settings)
        return tmp_path / name

    return save


def test_exif_rotation_is_applied(saved):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image = open_rgb(saved("a.JPG", picture(), exif=exif, quality=95), 8)
    assert image.size == (30, 40)
    assert near(image, 15, 4, RED)
    assert near(image, 15, 36, BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(saved, mode):
    image = Image.new("RGBA", (16, 16), (*RED, 0))
    image.paste((*GREEN, 255), (8, 0, 16, 16))
    if mode == "P":
        image = image.quantize(8)
    shown = open_rgb(saved("a.png", image.convert(mode)), 8)
    assert shown.mode == "RGB"
    assert near(shown, 2, 8, (255, 255, 255))
    assert not near(shown, 12, 8, (255, 255, 255))


def test_grey_palette_bilevel_webp_and_cmyk(saved):
    grey = open_rgb(saved("a.png", Image.new("L", (9, 9), 100)), 8)
    assert near(grey, 4, 4, (100, 100, 100), 0)
    assert near(open_rgb(saved("b.png", picture().quantize(4)), 8), 2, 2, RED)
    assert near(open_rgb(saved("c.png", Image.new("1", (9, 9), 1)), 8), 4, 4, (255, 255, 255), 0)
    assert near(open_rgb(saved("d.WEBP", picture(), quality=95), 8), 2, 2, RED, 30)
    assert near(open_rgb(saved("e.jpeg", picture().convert("CMYK"), quality=95), 8), 2, 2, RED, 30)


def test_sixteen_bits_keep_their_brightness(saved):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = open_rgb(saved("a.png", Image.fromarray(ramp)), 8)
    assert np.abs(np.asarray(image)[..., 0].astype(float) - ramp / 257).max() <= 1
    image = open_rgb(saved("b.tiff", Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))), 8)
    assert np.asarray(image)[..., 0].min() == 0
    assert np.asarray(image)[..., 0].max() == 255


def test_colour_profiles_are_honoured(saved):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert near(open_rgb(saved("a.png", picture(), icc_profile=profile), 8), 2, 2, RED, 2)
    assert near(open_rgb(saved("b.png", picture(), icc_profile=b"nonsense"), 8), 2, 2, RED, 0)


def test_huge_pictures_are_reduced_while_decoding_or_refused(saved, monkeypatch):
    path = saved("huge.jpg", picture((6000, 4000)))
    image = open_rgb(path, 48)
    assert min(96, 48) <= min(image.size) < 1000
    assert near(View((48, 48)).cut(image), 4, 24, RED, 30)
    monkeypatch.setattr(images, "MAX_PIXELS", 10**6)
    with pytest.raises(ValueError, match=r"6000 x 4000 exceeds 1 million pixels; scale it down"):
        open_rgb(path, 48)


def test_tiny_and_thin_pictures_become_squares():
    assert View((16, 16)).cut(Image.new("RGB", (1, 1), RED)).getpixel((8, 8)) == RED
    assert View((16, 16)).cut(Image.new("RGB", (1, 20000), RED)).size == (16, 16)


def test_views_differ_only_where_asked():
    def made(size, **settings):
        settings = {"center_crop": False, "random_flip": False, "seed": 0} | settings
        return [view.cut(picture(size)) for view in views(size, (16, 16), 4, **settings)]

    assert len(made((32, 32))) == 1
    assert len(made((64, 32), center_crop=True)) == 1
    crops = made((64, 32))
    assert len({crop.tobytes() for crop in crops}) == 4
    assert crops[0].tobytes() == View((16, 16)).cut(picture((64, 32))).tobytes()
    assert [crop.tobytes() for crop in crops] == [crop.tobytes() for crop in made((64, 32))]
    plain, mirrored = made((32, 32), random_flip=True)
    assert near(plain, 2, 8, RED)
    assert near(mirrored, 2, 8, BLUE)


@pytest.fixture
def messy(tmp_path):
    """One good picture in a folder of everything else that people have."""
    picture((64, 64)).save(tmp_path / "good.PNG")
    picture((8, 8)).save(tmp_path / "small.png")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "notes.txt").write_text("shopping list")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "subfolder").mkdir()
    (tmp_path / "small.txt").write_text("a tiny\n cat\n")
    return tmp_path


def test_the_report_names_every_file_that_is_not_used(messy):
    folder = read_folder(DataOptions(instance_data_dir=messy, instance_prompt="a photo of sks cat"), 32, 0)
    assert [(e.name, e.prompt) for e in folder.examples] == [
        ("good.PNG", "a photo of sks cat"),
        ("small.png", "a tiny cat"),
    ]
    assert folder.refused["notes.txt"] == "not an image that Pillow can read"
    assert folder.refused["empty.png"] == "empty file"
    assert folder.refused["photo.heic"] == "not an image that Pillow can read; convert it to JPEG or PNG"
    assert folder.refused["cut.jpg"].startswith("damaged: image file is truncated")
    assert set(folder.refused) == {"notes.txt", "empty.png", "photo.heic", "cut.jpg"}
    assert list(folder.report())[:2] == [
        "2 pictures at 32 x 32 pixels, 1 with a caption of their own",
        "  enlarged small.png: 8 x 8",
    ]
    assert "  not used notes.txt: not an image that Pillow can read" in list(folder.report())


def test_a_folder_without_a_picture_is_one_clear_error(tmp_path):
    def message(path):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read_folder(DataOptions(instance_data_dir=path), 32, 0)
        return str(caught.value)

    assert message(tmp_path / "absent") == f"--instance_data_dir {tmp_path / 'absent'}: no such folder"
    assert message(tmp_path).endswith("the folder has no files (subfolders are searched if named as 10_NAME)")
    (tmp_path / "a.txt").write_text("no picture")
    said = message(tmp_path)
    assert said.endswith("no picture can be read (a.txt: not an image that Pillow can read)")
    assert message(tmp_path / "a.txt").endswith("is a file; give the folder that holds the pictures")


class Encoder:
    """A base that encodes a picture as its mean colour, and a prompt as its own text, and counts what it is asked."""

    def __init__(self):
        self.images, self.prompts = 0, []

    def encode_image(self, pixels):
        self.images += len(pixels)
        return pixels.mean((2, 3))[:, :, None, None]

    def encode_prompt(self, prompts):
        self.prompts += prompts
        return {"prompt_embeds": torch.tensor([[float(prompt)] for prompt in prompts])}


def test_cached_pairs_stay_together_under_shuffling(tmp_path):
    """Off by one anywhere, or a cache read in another order than it was written, breaks this."""
    for i in range(7):
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(str(30 * i))
    base = Encoder()
    data = CachedImages(base, read_folder(DataOptions(instance_data_dir=tmp_path), 8, 0).examples)
    assert (base.images, len(base.prompts)) == (7, 7)
    seen = []
    for first in range(0, 70, 5):
        batch = data.batch(list(range(first, first + 5)), seed=3)
        red = ((batch["moments"][:, 0, 0, 0] + 1) * 127.5).round()
        assert torch.equal(red, batch["prompt_embeds"][:, 0])
        assert data.names(list(range(first, first + 5)), 3) == [f"{int(value) // 30}.png" for value in red]
        seen += red.tolist()
    epochs = [tuple(seen[i : i + 7]) for i in range(0, 70, 7)]
    assert all(sorted(epoch) == [30.0 * i for i in range(7)] for epoch in epochs)
    assert len(set(epochs)) > 5


def test_batches_are_pure_functions_of_their_numbers(tmp_path):
    for i in range(3):
        picture((40 + i, 20)).save(tmp_path / f"{i}.png")
    options = DataOptions(instance_data_dir=tmp_path, instance_prompt="1")
    data = CachedImages(Encoder(), read_folder(options, 8, 0).examples)
    whole = data.batch(list(range(12)), 0)
    for start in (8, 0, 4):
        part = data.batch(list(range(start, start + 4)), 0)
        assert all(torch.equal(part[name], whole[name][start : start + 4]) for name in whole)
    assert len(set(whole["seeds"].tolist())) == 12
    assert not torch.equal(data.batch(list(range(12)), 1)["seeds"], whole["seeds"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_levels_are_uniform_over_the_run_and_over_every_picture(seed):
    levels = torch.tensor([spread(seed, number) for number in range(5000)])
    assert 0 <= levels.min() < 0.01
    assert 0.99 < levels.max() < 1
    for few in levels.unfold(0, 4, 1)[:1000]:
        assert few.sort().values.diff().min() > 0.1  # any four samples in a row differ
    order = [shuffled(5, seed, epoch) for epoch in range(1000)]
    for picture in range(5):
        own = torch.stack([levels[5 * epoch + order[epoch].index(picture)] for epoch in range(1000)])
        assert (own.histc(10, 0, 1) - 100).abs().max() < 40
    assert spread(0, 7) != spread(1, 7)


def test_equal_pictures_are_encoded_once(tmp_path):
    for name in ("a.png", "b.png"):
        picture((20, 20)).save(tmp_path / name)
    base = Encoder()
    CachedImages(base, read_folder(DataOptions(instance_data_dir=tmp_path, instance_prompt="1"), 8, 0).examples)
    assert (base.images, base.prompts) == (1, ["1"])
