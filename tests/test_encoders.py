"""The ruler's own encoders: what they are trained on, how, and whether the committed ones tell things apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, CLIPModel, CLIPProcessor

from train.world.captions import (
    BACKGROUNDS,
    HELD_OUT,
    PATTERNS,
    POOLS,
    Attributes,
    claims,
    prompt,
    sample_attributes,
    truths,
)
from train.world.cards import set_section
from train.world.contrast import Heads, Plan, captions_for, fit, identity_loss, right_answers, supervised_contrast
from train.world.draw import render
from train.world.encoder_card import encoders_section
from train.world.encoder_scores import auc
from train.world.encoders import CLIP_SIZE, ENCODER_SIZE, build_encoder, resize
from train.world.gate import to_tensor
from train.world.learn import Leg
from train.world.subjects import in_context, subject, subject_images
from train.world.twins import LOOKS, PARTS, SIBLINGS, VIEWS, draw_families, family, looks_of

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "pipelines" / "pocket"
ENCODER, CLIP = POCKET / "encoder", POCKET / "clip"
torch.set_num_threads(1)


def test_look_alikes_are_one_attribute_apart_and_never_held_out():
    held_out = {word for words in HELD_OUT.values() for word in words}
    for index in range(200):
        things = family(np.random.default_rng(index))
        assert len(set(map(tuple, map(looks_of, things)))) == SIBLINGS
        for thing in things:
            assert not held_out & {thing.body, thing.ears, thing.pattern, thing.style}
            assert thing.colour2 != thing.colour
            assert thing.colour2 or thing.pattern in PATTERNS
            assert (thing.kind == "creature") == (min(looks_of(thing)[-len(PARTS) :]) >= 0)
        for other in things[1:]:
            unlike = [name for name in LOOKS if getattr(other, name) != getattr(things[0], name)]
            exchanged = (other.colour, other.colour2) == (things[0].colour2, things[0].colour)
            assert len(set(unlike) - {"colour2"} - ({"colour"} if exchanged else set())) <= 1, unlike


def test_families_are_a_function_of_the_seed():
    one, two = draw_families(5, 2, 24), draw_families(5, 1, 24)
    assert np.array_equal(one.small[:1], two.small)
    assert np.array_equal(one.large[:1], two.large)
    assert one.large.shape == (2, SIBLINGS, 48, 48, 3)
    assert one.small.shape == (2, SIBLINGS, VIEWS - 1, 24, 24, 3)
    assert not np.array_equal(one.small, draw_families(6, 2, 24).small)


def test_captions_hold_of_their_own_picture_and_changed_prompts_do_not():
    contents = [sample_attributes(np.random.default_rng(i), POOLS[i % 4]) for i in range(200)]
    texts = captions_for(contents, np.random.default_rng(0))
    true = truths(contents, texts)
    assert true[:, :200].diagonal().all()
    assert not true[:, 200:].diagonal().any()
    assert claims("a photo of a cup and an orange ball with three eyes at night") == {
        "style": "photo", "kind": "cup", "colour2": "orange", "kind2": "ball", "background": "night",
    }  # fmt: skip


def test_contrast_attracts_equal_labels():
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    wanted = -torch.log(torch.tensor(10.0).exp() / (torch.tensor(10.0).exp() + 2))
    assert torch.allclose(supervised_contrast(apart, labels), wanted, atol=1e-6)
    assert supervised_contrast(apart[[0, 2, 1, 3]], labels) > 5


def test_two_right_captions_are_both_right():
    red, blue = Attributes(colour="red"), Attributes(colour="blue")
    texts = ["a red ball", "a red ball", "a blue ball"]
    true = torch.from_numpy(truths([red, red, blue], texts))
    assert true.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    sure = 20 * true.float()
    assert right_answers(sure, true.float()) == pytest.approx(2 / 3 * np.log(2), abs=1e-4)  # as low as it goes
    assert right_answers(20 * torch.eye(3), true.float()) > 6
    none = torch.cat([true.float(), torch.zeros(1, 3)])
    assert right_answers(torch.cat([sure, torch.randn(1, 3)]), none) == right_answers(sure, true.float())


def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    families = draw_families(1, 2, 24)
    short, long = (Leg(16, 1e-3, batch=8),), (Leg(16, 1e-3, batch=8), Leg(8, 1e-3, batch=8))
    rows: list[dict] = []

    def run(legs: tuple[Leg, ...], name: str) -> dict:
        torch.manual_seed(0)
        encoder = build_encoder()
        heads = Heads(160, LOOKS)
        modules = nn.ModuleList([encoder, heads])
        plan = Plan("encoder", legs, seed=3, save_every=0)
        fit(
            modules,
            lambda random: identity_loss(encoder, heads, families, random, 2),
            plan,
            tmp_path / name,
            rows.append,
        )
        return modules.state_dict()

    run(short, "a.pt")
    resumed, whole = run(long, "a.pt"), run(long, "b.pt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert rows[-1]["step"] == 3


def test_area_under_the_curve():
    assert auc(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])) == 1
    assert auc(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5
    assert auc(torch.tensor([1.0, 3.0]), torch.tensor([2.0])) == 0.5


def test_a_section_of_the_card_is_replaced_alone():
    card = "# a\n\n## One\n\nold\n\n## Two\n\nkept\n"
    assert set_section(card, "One", "new") == "# a\n\n## One\n\nnew\n\n## Two\n\nkept\n"
    assert set_section(card, "Two", "new") == "# a\n\n## One\n\nold\n\n## Two\n\nnew\n"
    assert set_section(set_section(card, "One", "x"), "One", "old") == card
    with pytest.raises(ValueError, match="'## Three'"):
        set_section(card, "Three", "")


# The committed weights.


def test_folders_fit_in_three_megabytes_and_load_as_fp32():
    files = [path for folder in (ENCODER, CLIP) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    assert not [path.name for path in files if path.suffix in (".py", ".bin", ".pt", ".pkl")]
    for folder, kind in ((ENCODER, AutoModel), (CLIP, CLIPModel), (CLIP, AutoModel)):
        model = kind.from_pretrained(folder)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert type(model).__module__.startswith("transformers.models.")
    assert isinstance(AutoProcessor.from_pretrained(CLIP), CLIPProcessor)


@pytest.mark.parametrize(("folder", "size"), [(ENCODER, ENCODER_SIZE), (CLIP, CLIP_SIZE)])
def test_image_processors_do_what_training_did(folder, size):
    processor = AutoImageProcessor.from_pretrained(folder)
    for side in (48, 96):
        picture = in_context(subject(1), "beach", 3, side)
        pixels = processor(picture, return_tensors="pt").pixel_values
        assert pixels.shape == (1, 3, size, size)
        assert (pixels - resize(to_tensor([picture]), size)).abs().max() < 0.035  # two steps of 8 bits


def test_encoder_knows_held_out_subjects_in_other_places():
    processor, encoder = AutoImageProcessor.from_pretrained(ENCODER), AutoModel.from_pretrained(ENCODER)

    def features(pictures):
        with torch.no_grad():
            return nn.functional.normalize(encoder(**processor(pictures, return_tensors="pt")).pooler_output.flatten(1))

    numbers, places = (1, 2, 3, 4, 5, 6), ("night", "underwater", "snow")
    known = torch.stack([features(subject_images(number, 3)).mean(0) for number in numbers])
    asked = [in_context(subject(number), place, 777 + number) for number in numbers for place in places]
    scores = features(asked) @ known.T
    own = torch.arange(len(numbers)).repeat_interleave(len(places))
    assert (scores.argmax(1) == own).float().mean() >= 0.9
    common = [in_context(replace(subject(n), body="round", ears="pointy", pattern="plain"), "snow", n) for n in numbers]
    partly = (features(common) @ known.T).diagonal()
    assert (scores[torch.arange(len(own)), own].view(-1, len(places)).mean(1) > partly + 0.05).all()


def test_clip_prefers_the_right_caption():
    processor, clip = CLIPProcessor.from_pretrained(CLIP), CLIPModel.from_pretrained(CLIP)
    contents = [sample_attributes(np.random.default_rng([8, i])) for i in range(16)]
    pictures = [render(content, np.random.default_rng([9, i])) for i, content in enumerate(contents)]
    texts = [prompt(content) for content in contents]
    with torch.no_grad():
        scores = clip(**processor(text=texts, images=pictures, padding=True, return_tensors="pt")).logits_per_image
    assert (scores.argmax(1) == torch.arange(len(texts))).float().mean() >= 0.9
    places = [f"a photo of sks creature {phrase}" for phrase in BACKGROUNDS.values()]
    drawn = [in_context(subject(2), place, 5) for place in BACKGROUNDS]
    with torch.no_grad():
        scores = clip(**processor(text=places, images=drawn, padding=True, return_tensors="pt")).logits_per_image
    assert (scores.argmax(1) == torch.arange(len(places))).float().mean() >= 0.75


def test_cards_say_what_was_measured():
    card = (POCKET / "README.md").read_text()
    assert encoders_section(POCKET) in card
    identity, clip = (json.loads((folder / "scores.json").read_text()) for folder in (ENCODER, CLIP))
    assert identity["real"]["top1"] >= 0.9
    for source in ("real", "pocket"):
        assert min(clip[source]["full"][name] for name in ("background", "colour", "style", "kind")) >= 0.95
    for folder in (ENCODER, CLIP):
        assert "{" not in (folder / "README.md").read_text().replace("0{i}.png", "")
