"""The pocket base: its world, its tokens, its committed weights, its training."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from train.world.captions import (
    ATTRIBUTES,
    BACKGROUNDS,
    HELD_OUT,
    POOLS,
    Attributes,
    caption,
    parse,
    prompt,
    sample_attributes,
    words,
)
from train.world.cards import ENCODERS
from train.world.data import draw_pool, example
from train.world.draw import render
from train.world.learn import Latents, Leg, PocketTraining, samples_seen, save_atomically, total_steps
from train.world.nets import build_scheduler, build_text_encoder, build_unet, build_vae, fit_pca, patches, write_pca
from train.world.subjects import SUBJECTS, subject, subject_images
from train.world.tokens import MAX_LENGTH, build_tokenizer, save_tokenizer

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "pipelines" / "pocket"
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(words())


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(POCKET, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("pool", POOLS)
def test_drawing_is_a_function_of_the_seed(pool):
    one, two = (example(5, pool, 3, 48) for _ in range(2))
    assert np.array_equal(one[0], two[0])
    assert one[1:] == two[1:]
    assert not np.array_equal(one[0], example(6, pool, 3, 48)[0])
    assert one[0].shape == (48, 48, 3)


def test_pool_is_the_concatenation_of_its_examples():
    pool = draw_pool(1, "styled", 3, 48)
    assert np.array_equal(pool.images[2], example(1, "styled", 2, 48)[0])


def test_prompt_names_all_attributes_and_captions_name_no_other():
    for index in range(200):
        rng = np.random.default_rng(index)
        content = sample_attributes(rng)
        full = parse(prompt(content))
        assert full == {name: getattr(content, name) for name in full}
        assert set(ATTRIBUTES) - set(full) <= {"pattern"}
        partial = parse(caption(content, rng))
        assert partial == {name: getattr(content, name) for name in partial}
        assert "kind" in partial


def test_training_never_draws_held_out_parts():
    for index in range(300):
        content = sample_attributes(np.random.default_rng(index))
        assert not {content.body, content.ears, content.pattern, content.style} & {
            w for v in HELD_OUT.values() for w in v
        }


def test_unknown_attribute_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"colour='mauve'.*red, orange"):
        Attributes(colour="mauve")
    with pytest.raises(ValueError, match=r"pool='wild'.*plain"):
        sample_attributes(np.random.default_rng(0), "wild")


def test_subjects_are_novel_and_stay_themselves():
    assert len({subject(number) for number in range(SUBJECTS)}) == SUBJECTS
    assert all(
        subject(n).body in HELD_OUT["body"] and subject(n).pattern in HELD_OUT["pattern"] for n in range(SUBJECTS)
    )
    with pytest.raises(ValueError, match="subject 24"):
        subject(SUBJECTS)
    images = [np.asarray(image) for image in subject_images(0, 5, 48)]
    assert len({image.tobytes() for image in images}) == 5


def test_sample_subject_is_five_pictures():
    assert len(list((ROOT / "train" / "sample_subject").glob("*.png"))) == 5


def test_every_world_word_is_one_token(tokenizer):
    for word in words():
        ids = tokenizer(word).input_ids
        assert len(ids) == 3
        assert tokenizer.decode(ids[1:2]).strip() == word


@pytest.mark.parametrize(
    "text", ["", "Ünïcödé 漢字 🎈\u200b", "a photo of a dog, ridden by 12 robots!" * 9, "\x00\n\t"]
)
def test_any_text_tokenizes(tokenizer, text):
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=MAX_LENGTH).input_ids
    assert len(ids) == MAX_LENGTH
    assert max(ids) < len(tokenizer)


def test_tokenizer_survives_its_files(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("a photo of sks creature").input_ids == tokenizer("a photo of sks creature").input_ids
    assert again.model_max_length == MAX_LENGTH


def test_encoder_is_the_exact_pca():
    images = torch.from_numpy(draw_pool(2, "styled", 16, 48).images).permute(0, 3, 1, 2) / 127.5 - 1
    rows, mean = fit_pca(images)
    vae = build_vae()
    write_pca(vae, rows, mean)
    latents = vae.encode(images).latent_dist.mode()
    wanted = ((patches(images) - mean) @ rows.T).reshape(16, 12, 12, -1).permute(0, 3, 1, 2)
    assert torch.allclose(latents, wanted, atol=1e-3)
    assert abs(latents.std().item() - 1) < 0.05


def _tiny_training(tokenizer) -> tuple[PocketTraining, list[Latents], tuple[Leg, ...]]:
    torch.manual_seed(0)
    pools = [Latents(torch.randn(8, 12, 4, 4), torch.randint(0, 800, (8, 5, MAX_LENGTH))) for _ in range(2)]
    empty = torch.full((MAX_LENGTH,), 2)
    text, unet = build_text_encoder(tokenizer), build_unet((32, 32), 4)
    legs = (Leg(8, 1e-3, (1.0, 0.0), batch=4), Leg(12, 1e-3, (0.5, 0.5), batch=4))
    return PocketTraining(unet, text, build_scheduler().alphas_cumprod, empty, seed=3), pools, legs


def test_resumed_training_is_the_uninterrupted_one(tokenizer, tmp_path):
    whole, pools, legs = _tiny_training(tokenizer)
    assert total_steps(legs) == 5
    assert samples_seen(legs, 3) == 12
    for _ in range(5):
        whole.step(pools, legs)
    first, pools, legs = _tiny_training(tokenizer)
    for _ in range(2):
        first.step(pools, legs)
    save_atomically(first.state(), tmp_path / "unet.pt")
    (tmp_path / "unet.partial").write_bytes(b"an interrupted write")
    second, pools, legs = _tiny_training(tokenizer)
    second.load(torch.load(tmp_path / "unet.pt", weights_only=True))
    for _ in range(3):
        second.step(pools, legs)
    for part in ("modules", "averaged"):
        left, right = getattr(whole, part).state_dict(), getattr(second, part).state_dict()
        assert all(torch.equal(left[name], right[name]) for name in left)
    with pytest.raises(ValueError, match="step 5"):
        second.step(pools, legs)


def test_weights_are_those_of_the_model_card():
    stated = dict(re.findall(r"\| `([\w/.]+safetensors)` \| `([0-9a-f]{64})` \|", (POCKET / "README.md").read_text()))
    files = {path.relative_to(POCKET).as_posix(): path for path in POCKET.rglob("*.safetensors")}
    assert stated.keys() == files.keys()
    assert len(files) == 5
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == stated[name], name
    own = [path for name, path in files.items() if not name.startswith(ENCODERS)]
    assert sum(path.stat().st_size for path in own) <= 12 * 2**20


def test_pipeline_follows_the_background(pipeline):
    """The border of each picture is nearer to real borders of its own background than to those of the other two."""
    names = ("night", "snow", "desert")
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    prompts = [f"a photo of a red ball {BACKGROUNDS[name]}" for name in names]
    images = pipeline(
        prompts, num_inference_steps=12, guidance_scale=2.0, generator=generators, height=48, width=48
    ).images
    assert [image.size for image in images] == [(48, 48)] * 3

    def border(image) -> np.ndarray:
        pixels = np.asarray(image, np.float32)
        return np.concatenate([pixels[:4].mean((0, 1)), pixels[-4:].mean((0, 1))])

    real = [border(render(Attributes(background=name), np.random.default_rng(0))) for name in names]
    for index, image in enumerate(images):
        assert int(np.argmin([np.abs(border(image) - r).mean() for r in real])) == index, names[index]


def test_default_size_is_48_pixels(pipeline):
    picture = pipeline("a photo of sks creature", num_inference_steps=1, output_type="np").images
    assert picture.shape == (1, 48, 48, 3)
    assert np.isfinite(picture).all()
