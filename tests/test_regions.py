"""Two subjects in one picture: the masks of the benchmark keep them apart, and its numbers say so."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from diffusion_adapters import AdapterWeight, use_adapters
from tests.readme import RESULTS
from train.benchmarks.blending import PROTOCOL, SIDE, TOKENS, draw, halves, load_base
from train.benchmarks.gallery import PICTURES, SUBJECTS, TWO, GalleryOptions, make
from train.benchmarks.regions import BLENDS, Eye, prompts, rendered, table
from train.ruler import Encoder, Scores
from train.world.subjects import subject_images

GALLERY = RESULTS / "gallery"
NUMBERS = tuple(SUBJECTS.values())


@pytest.fixture(scope="module")
def eye() -> Eye:
    return Eye(Encoder(PROTOCOL.image_encoder), [subject_images(number, 3, SIDE) for number in NUMBERS])


def test_halves_cover_the_picture_once() -> None:
    left, right = halves()
    assert left.shape == right.shape == (SIDE, SIDE)
    assert (left + right == 1).all()
    assert left[:, : SIDE // 2].all()
    assert not left[:, SIDE // 2 :].any()


def test_prompts_name_each_creature_by_its_token_or_by_none() -> None:
    assert prompts("sks", "zwx")[0] == TWO
    assert prompts("", "zwx")[1] == "a photo of a creature and a zwx creature on a beach"


def test_the_eye_knows_the_subjects_of_the_world_in_their_halves(eye: Eye) -> None:
    seen = eye.together(rendered((NUMBERS[0], NUMBERS[1]), 2))
    swapped = eye.together(rendered((NUMBERS[1], NUMBERS[0]), 2))
    assert seen["left"].shape == (4, 2)
    assert min(seen["left"].mean(), seen["right"].mean(), swapped["other"].mean()) > 0.75
    assert max(swapped["left"].mean(), swapped["right"].mean(), seen["other"].mean()) < 0.4


def test_class_leak_is_the_gain_of_the_half_beside_the_subject(eye: Eye) -> None:
    both, none = rendered((NUMBERS[0], NUMBERS[1]), 1), rendered((5, 6), 1)
    assert (eye.leak((both, both), (both, both)) == 0).all()
    doubled = rendered((NUMBERS[0], NUMBERS[0]), 1), rendered((NUMBERS[1], NUMBERS[1]), 1)
    assert eye.leak(doubled, (none, none)).mean() > 0.3
    assert abs(eye.leak((both, both), (none, none)).mean()) < 0.3  # the subject itself is in the other half


def test_masks_keep_two_subjects_apart(eye: Eye) -> None:
    pipe = load_base(**{name: GALLERY / f"{name}.safetensors" for name in SUBJECTS})
    masks = [AdapterWeight(mask=mask) for mask in halves()]
    read = []
    for weights in (masks, masks[::-1]):
        with use_adapters(pipe, list(SUBJECTS), weights):
            read.append(eye.together(draw(pipe, [TWO], (1000, 1001))))
    right, wrong = (float((one["left"] + one["right"]).mean() / 2 - one["other"].mean()) for one in read)
    assert right > 0.2
    assert wrong < -0.2


def test_the_table_is_that_of_the_numbers() -> None:
    rows = json.loads((RESULTS / "regions" / "regions.json").read_text("utf-8"))["rows"]
    scores = {row: Scores.from_json(values) for row, values in rows.items()}
    assert table(scores) == (RESULTS / "regions" / "regions.md").read_text("utf-8").strip()
    assert {"base", *BLENDS} < set(scores)
    assert scores["masks"].values["left"].ndim == 3


def test_the_gallery_is_complete_and_small() -> None:
    for name in PICTURES:
        file = GALLERY / f"{name}.png"
        assert file.stat().st_size < 150_000
        with Image.open(file) as image:
            assert len(np.unique(np.asarray(image))) > 100
    assert len(TOKENS) == len(SUBJECTS)


def test_an_unknown_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^--only band: no such picture, did you mean 'bands'\?"):
        make(GalleryOptions(only=("band",)))
