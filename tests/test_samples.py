"""Every sample keeps its own picture, caption and mask, whatever shuffles them; and every process its own samples."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from train.bases import BaseOptions
from train.data import CachedImages, DataOptions, Example, read_folder
from train.data.buckets import Order, buckets_for, made, nearest, parse, shuffled
from train.data.captions import all_texts, chosen, variants

SHAPES = ((32, 32), (48, 24), (24, 48), (60, 30), (32, 33), (30, 64), (17, 17))


class Encoder:
    """A base that encodes a picture as itself at a quarter of its side, and a text as the number that stands in it."""

    def __init__(self):
        self.images, self.texts = 0, []
        self.denoiser, self.options = nn.Linear(1, 1), BaseOptions()
        self.pipeline = SimpleNamespace(components={"vae": nn.Linear(2, 2), "text_encoder": nn.Linear(2, 2)})

    def encode_image(self, pixels):
        self.images += len(pixels)
        return nn.functional.avg_pool2d(pixels, 4)

    def encode_prompt(self, prompts):
        self.texts += prompts
        found = [re.search(r"\d+", prompt) for prompt in prompts]
        return {"prompt_embeds": torch.tensor([[float(match[0]) if match else -1.0] for match in found])}


@pytest.fixture
def folder(tmp_path):
    """Pictures whose red is their number, told by their caption, and whose green is white where their mask is."""
    for number, (width, height) in enumerate(SHAPES):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = 30 * number
        pixels[: height // 2, : width // 3, 1] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        Image.fromarray(pixels[..., 1]).save(tmp_path / f"{number}.mask.png")
        (tmp_path / f"{number}.txt").write_text(f"{30 * number}, round, green, small")
    return tmp_path


def dataset(folder, base=None, group=1, **options):
    more = {name: options.pop(name) for name in ("class_prompt", "class_examples", "live_texts") if name in options}
    options = DataOptions(instance_data_dir=folder, **options)
    return CachedImages(base or Encoder(), read_folder(options, 32, 0).examples, options, group=group, **more)


def assert_paired(data, numbers, seed):
    """Latents, text, name and mask of each row are of one picture; returns the numbers of the pictures."""
    batch = data.batch(numbers, seed)
    red = ((batch["moments"][:, 0].mean((1, 2)) + 1) * 127.5).round()
    told = batch["prompt_embeds"][:, 0]
    assert torch.equal(told[told >= 0], red[told >= 0])
    assert data.names(numbers, seed) == [f"{int(value) // 30}.png" for value in red]
    said = [re.search(r"\d+", text) for text in data.texts(numbers, seed)]
    assert [float(match[0]) if match else -1.0 for match in said] == told.tolist()
    if "mask" in batch:
        torch.testing.assert_close(batch["mask"][:, 0], (batch["moments"][:, 1] + 1) / 2, atol=0.15, rtol=0)
    return [int(value) // 30 for value in red]


EVERYTHING = {
    "use_aspect_ratio_buckets": True,
    "random_flip": True,
    "masked_loss": True,
    "shuffle_caption": True,
    "caption_dropout": 0.3,
    "repeats": 2,
}


@pytest.mark.parametrize("options", [{}, {"random_flip": True, "masked_loss": True}, EVERYTHING], ids=len)
@pytest.mark.parametrize("disk", [False, True])
def test_pairs_stay_together_through_shuffling_buckets_flips_and_repeats(folder, tmp_path, options, disk):
    cache = {"latents_cache_dir": tmp_path / "cache"} if disk else {}
    if disk:
        dataset(folder, **cache)  # another run has filled the cache, in another order
    data = dataset(folder, group=4, **cache, **options)
    seen = Counter()
    for first in range(0, 4 * len(data), 2):
        seen.update(assert_paired(data, [first, first + 1], seed=3))
    assert seen == dict.fromkeys(range(len(SHAPES)), 4 * options.get("repeats", 1))


def shift_texts(data):
    rows = data.rows
    data.rows = lambda numbers, seed: [
        row._replace(text=next_row.text)
        for row, next_row in zip(rows(numbers, seed), rows([n + 4 for n in numbers], seed), strict=True)
    ]


def shift_latents(data):
    """What eight of diffusers' scripts do: latents by the number of the step, everything else by the shuffled order."""
    key = data._image_key
    keys = [key(example.keys[0]) for example in data.examples]
    asked = iter(range(10**9))
    data._image_key = lambda _: keys[next(asked) % len(keys)]


def shift_masks(data):
    found = list(data.masks.values())
    data.masks = dict(zip(data.masks, found[1:] + found[:1], strict=True))


@pytest.mark.parametrize("mutant", [shift_texts, shift_latents, shift_masks])
def test_pairs_off_by_one_are_noticed(folder, mutant):
    data = dataset(folder, masked_loss=True)
    mutant(data)
    with pytest.raises(AssertionError):
        [assert_paired(data, [number], seed=3) for number in range(len(data))]


def test_processes_and_accumulation_draw_parts_of_the_same_step(folder):
    """Two processes with two accumulations of batches of two are one process with batches of eight."""
    data = dataset(folder, group=8, **EVERYTHING)
    for step in range(12):
        whole = data.batch(list(range(8 * step, 8 * step + 8)), 0)
        for part in range(2):
            for process in range(2):
                first = 8 * step + 4 * part + 2 * process
                own = data.batch([first, first + 1], 0)
                place = slice(first - 8 * step, first - 8 * step + 2)
                assert all(torch.equal(own[name], whole[name][place]) for name in whole)


def test_a_batch_is_asked_for_within_a_group(folder):
    data = dataset(folder, group=2, use_aspect_ratio_buckets=True)
    with pytest.raises(ValueError, match=r"samples 0 to 39 lie in \d buckets: ask for one group"):
        data.batch(list(range(40)), 0)


@pytest.mark.parametrize("group", [1, 3, 8])
def test_an_epoch_shows_every_picture_equally_often_and_a_group_one_bucket(group):
    buckets = ["wide"] * 5 + ["square"] * 2 + ["tall"]
    order = Order(buckets, group)
    for epoch in range(3):
        first = epoch * len(buckets) * group
        seen = [order(number, 7) for number in range(first, first + len(buckets) * group)]
        assert Counter(seen) == dict.fromkeys(range(len(buckets)), group)
        assert all(len({buckets[entry] for entry in seen[i : i + group]}) == 1 for i in range(0, len(seen), group))
    assert [order(number, 7) for number in range(100)] != [order(number, 8) for number in range(100)]


def test_a_single_bucket_is_plain_shuffling():
    order = Order(["square"] * 6, group=4)
    assert [order(number, 1) for number in range(18)] == [i for epoch in range(3) for i in shuffled(6, 1, epoch)]


def test_sizes_are_those_of_the_file_and_of_the_cut(folder):
    data = dataset(folder, group=1, center_crop=True)
    for number in range(len(data)):
        (sizes,) = data.batch([number], 0)["sizes"].tolist()
        width, height = SHAPES[int(data.names([number], 0)[0][0])]
        assert sizes[:2] == [height, width]
        assert sizes[4:] == [32, 32]
        scale = 32 / min(width, height)
        assert sizes[2:4] == pytest.approx([(height * scale - 32) / 2, (width * scale - 32) / 2], abs=0.5)


def test_buckets_are_near_the_area_and_of_sides_that_the_base_takes():
    assert made(512, 8) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    for resolution, multiple in ((512, 8), (1024, 16), (64, 8), (16, 2)):
        found = made(resolution, multiple)
        assert (resolution, resolution) in found
        assert all(side % multiple == 0 for size in found for side in size)
        assert all(0.75 * resolution**2 < width * height <= resolution**2 for width, height in found)
        assert all((height, width) in found for width, height in found)
        assert all(0.5 <= width / height <= 2 for width, height in found)
    assert nearest((300, 200), [(64, 64), (72, 48), (96, 32)]) == (72, 48)


def test_buckets_are_read_as_in_diffusers_or_refused():
    assert parse("64,32; 32,64;64,32", 16) == [(32, 64), (64, 32)]
    for text, said in {
        "64": "--aspect_ratio_buckets '64': '64' is not a pair \"height,width\" of pixels",
        "64,32;": "--aspect_ratio_buckets '64,32;': '' is not a pair \"height,width\" of pixels",
        "64,0": "--aspect_ratio_buckets '64,0': '64,0' is not a pair \"height,width\" of pixels",
        "64,40": "--aspect_ratio_buckets '64,40': width 40 must be a multiple of 16 for this base, as 32 is",
    }.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            parse(text, 16)
        assert str(caught.value) == said
    with pytest.raises(ValueError, match="--resolution 40 must be a multiple of 16 for this base, such as 32"):
        buckets_for(DataOptions(), 40, 16)


def test_shuffled_captions_keep_their_first_tags_and_are_few():
    options = DataOptions(shuffle_caption=True, keep_tokens=1, caption_variants=5)
    found = variants("sks cat, red, blue ,  old", options)
    assert 1 < len(found) <= 5
    assert len(set(found)) == len(found)
    assert all(text.startswith("sks cat, ") for text in found)
    assert {tuple(sorted(text.split(", "))) for text in found} == {("blue", "old", "red", "sks cat")}
    assert variants("sks cat, red", options) == ("sks cat, red",)
    assert variants("a; b, c", DataOptions()) == ("a; b, c",)
    bars = DataOptions(shuffle_caption=True, caption_separator="|", caption_variants=50)
    assert set(variants("a | b", bars)) == {"a| b", "b| a"}


def test_texts_are_drawn_by_sample_and_encoded_once(folder):
    base = Encoder()
    options = {"shuffle_caption": True, "caption_dropout": 0.25, "caption_variants": 3}
    data = dataset(folder, base, **options)
    known = set(base.texts)
    assert len(base.texts) == len(known) <= 3 * len(SHAPES) + 1
    texts = [data.texts([number], 5)[0] for number in range(400)]
    assert set(texts) <= known
    assert len(base.texts) == len(known)
    assert 60 < texts.count("") < 140
    assert len(set(texts)) == len(known)
    assert texts == [data.texts([number], 5)[0] for number in range(400)]
    assert texts != [data.texts([number], 6)[0] for number in range(400)]
    assert set(all_texts(["a, b"], DataOptions(**options))) >= {
        chosen("a, b", DataOptions(**options), str(i)) for i in range(99)
    }


def test_texts_of_trained_text_encoders_are_had_beside_what_the_frozen_ones_made_of_them(folder):
    settings = {"class_prompt": "7", "shuffle_caption": True}
    cached, data = dataset(folder, **settings), dataset(folder, live_texts=True, **settings)
    for first in range(0, 21, 3):
        numbers = list(range(first, first + 3))
        batch, told = data.batch(numbers, 0), cached.batch(numbers, 0)["prompt_embeds"]
        assert "prompt_embeds" not in batch
        assert torch.equal(batch["frozen/prompt_embeds"], told)
        assert torch.equal(Encoder().encode_prompt(data.texts(numbers, 0))["prompt_embeds"], told)
        assert data.texts(numbers, 0)[3:] == ["7"] * 3


def test_the_teacher_sees_the_same_noisy_picture_with_the_class_prompt(folder):
    data = dataset(folder, class_prompt="class 7", caption_dropout=1.0, masked_loss=True)
    batch = data.batch([4, 5, 6], 1)
    assert batch["prior"].tolist() == [False] * 3 + [True] * 3
    for name in ("moments", "seeds", "spread", "sizes"):
        assert torch.equal(batch[name][:3], batch[name][3:])
    assert batch["prompt_embeds"].flatten().tolist() == [-1.0] * 3 + [7.0] * 3
    assert batch["mask"][3:].min() == 1 > batch["mask"][:3].min()


def test_class_images_come_with_their_prompt_in_the_size_of_the_batch(folder):
    sizes = {size: [] for size, _ in dataset(folder, use_aspect_ratio_buckets=True).order.members}
    for size, examples in sizes.items():
        colours = [Image.new("RGB", size, (0, 0, 50 + 20 * i)) for i in range(5)]
        examples += [Example(f"class{i}", (image,), "", size) for i, image in enumerate(colours)]
    data = dataset(folder, group=2, class_prompt="7", class_examples=sizes, use_aspect_ratio_buckets=True)
    seen = Counter()
    for first in range(0, 100, 2):
        batch = data.batch([first, first + 1], 0)
        assert batch["prior"].tolist() == [False, False, True, True]
        assert batch["prompt_embeds"][2:].flatten().tolist() == [7.0, 7.0]
        assert batch["moments"][:2, 2].max() == -1  # no blue in the instance
        seen.update(((batch["moments"][2:, 2].mean((1, 2)) + 1) * 127.5).round().tolist())
        assert len(set(batch["seeds"].tolist())) == 4
        assert batch["moments"].shape[-2:] == tuple(side // 4 for side in batch["sizes"][0, 4:].tolist())
    assert seen == {50.0 + 20 * i: 20 for i in range(5)}


def test_the_fingerprint_tells_what_would_train_otherwise(folder):
    plain = dataset(folder).fingerprint
    assert dataset(folder).fingerprint == plain
    for other in ({"repeats": 2}, {"center_crop": True}, {"masked_loss": True}, {"group": 2}, {"class_prompt": "a"}):
        assert dataset(folder, **other).fingerprint != plain
    (folder / "0.txt").write_text("other")
    assert dataset(folder).fingerprint != plain
