"""Prior preservation and masks in whole runs: class images are made once and kept, the teacher needs none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_adapters import set_adapters
from diffusion_adapters.file import read_adapter
from tests.tiny import save_pipeline
from train import dreambooth
from train.data import generate_missing
from train.flags import parse
from train.objective import Objective

NAME = re.compile(r"\d{5}-[0-9a-f]{16}\.png")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with a folder `cat` of pictures with masks."""
    monkeypatch.chdir(tmp_path)
    Path("cat").mkdir()
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 32, 16))
    for i in range(3):
        Image.linear_gradient("L").rotate(90 * i).resize((32, 32)).save(f"cat/{i}.png")
        mask.save(f"cat/{i}.mask.png")
    return tmp_path


def arguments(base, *more):
    fast = ("--max_train_steps", "2", "--num_inference_steps", "2", "--num_validation_images", "0", "--rank", "2")
    subject = ("--instance_data_dir", "cat", "--instance_prompt", "a photo of sks cat", "--adapter", "lora")
    return ["--pretrained_model_name_or_path", str(base), *subject, *fast, *more]


IMAGES = ("--with_prior_preservation", "--class_prompt", "a photo of a cat", "--class_data_dir", "class")
FEW = (*IMAGES, "--num_class_images", "5", "--sample_batch_size", "2")
TEACHER = (*IMAGES[:3], "--prior_source", "teacher")


def records(base, *more):
    config, adapter = parse(dreambooth.DreamBoothOptions, None, arguments(base, *more))
    return list(dreambooth.run(config, adapter))


def test_class_images_are_generated_once(base, place, capsys):
    assert dreambooth.main(arguments(base, *FEW)) == 0
    said = capsys.readouterr().out
    assert "0 class images in class, 5 to generate" in said
    assert "5 of 5 class images generated" in said
    made = {file.name: file.read_bytes() for file in Path("class").iterdir()}
    assert len(made) == 5
    assert all(NAME.fullmatch(name) for name in made)
    assert len(set(made.values())) == 5

    first, second, third, *_ = sorted(made)
    Path("class", first).unlink()
    Path("class", second).write_bytes(made[second][:50])
    Path("class", third).rename("class/mine.png")
    generate_missing(*prepared(base), lambda: False)
    said = capsys.readouterr().out
    assert "3 class images in class, 2 to generate" in said
    assert f"not used {second}: damaged" in said
    again = {file.name: file.read_bytes() for file in Path("class").iterdir()}
    assert {again[name] for name in again} == set(made.values())
    assert set(again) == {*made, "mine.png"} - {third}

    generate_missing(*prepared(base), lambda: False)
    assert "5 class images in class, 0 to generate" in capsys.readouterr().out


def prepared(base, *more):
    """What `generate_missing` is given in a run."""
    config, _ = parse(dreambooth.DreamBoothOptions, None, arguments(base, *FEW, *more))
    info = dreambooth.inspect_base(config)
    config = dreambooth.resolve(config, info)
    return dreambooth.make_accelerator(config), config, info


def test_an_interrupted_generation_goes_on_to_the_same_pictures(base, place):
    asked, given = [], prepared(base)
    with pytest.raises(KeyboardInterrupt):
        generate_missing(*given, lambda: asked.append(1) or len(asked) == 2)
    kept = {file.name for file in Path("class").iterdir()}
    assert len(kept) == 2
    generate_missing(*given, lambda: False)
    whole = {file.name for file in Path("class").iterdir()}
    assert kept < whole
    for file in Path("class").iterdir():
        file.unlink()
    generate_missing(*given, lambda: False)
    assert {file.name for file in Path("class").iterdir()} == whole


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_class_images_are_generated_in_the_precision_asked_for(base, place, monkeypatch, precision):
    def sample(base, prompts, seeds, **settings):
        used.append((base.dtype, prompts, len(seeds), settings["side"]))
        return [Image.effect_noise((16, 16), 50) for _ in prompts]

    used: list = []
    monkeypatch.setattr("train.data.prior.sample", sample)
    generate_missing(*prepared(base, "--prior_generation_precision", precision), lambda: False)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    assert used == [(dtype, ["a photo of a cat"] * count, count, 16) for count in (2, 2, 1)]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (FEW, {"loss_instance", "loss_prior"}),
        (TEACHER, {"loss_instance", "loss_prior"}),
        (("--masked_loss", "--masked_prior_weight", "0.5"), {"loss_instance", "loss_outside"}),
        ((*TEACHER, "--masked_loss", "--masked_prior_weight", "1"), {"loss_instance", "loss_outside", "loss_prior"}),
        (("--masked_loss", "--loss_type", "huber"), set()),
    ],
    ids=["images", "teacher", "outside", "all", "masked"],
)
def test_the_parts_of_the_loss_are_reported(base, place, flags, parts):
    first, second = records(base, *flags, "--train_batch_size", "2")
    assert {name for name in first if name.startswith("loss_")} == parts
    if parts:
        assert first["loss"] == pytest.approx(sum(first[name] for name in parts), rel=1e-5)
    if flags[:4] == TEACHER[:4]:
        assert first["loss_prior"] < 1e-8 < second["loss_prior"]  # an adapter that does nothing is the base


def test_the_options_of_the_loss_reach_it(base, place):
    flags = ("--masked_loss", "--unmasked_weight", "0.25", "--masked_prior_weight", "0.5", "--huber_c", "0.2")
    flags += (*TEACHER, "--prior_loss_weight", "0.7", "--loss_type", "smooth_l1")
    config, _ = parse(dreambooth.DreamBoothOptions, None, arguments(base, *flags))
    assert Objective.of(config) == Objective(
        loss_type="smooth_l1",
        huber_c=0.2,
        prior_loss_weight=0.7,
        teacher=True,
        unmasked_weight=0.25,
        masked_prior_weight=0.5,
    )
    assert not Objective.of(parse(dreambooth.DreamBoothOptions, None, arguments(base))[0]).teacher


def trained(folder):
    tensors = read_adapter(Path(folder) / "adapter.safetensors").tensors["unet"]
    return {f"{path}.{name}": value for path, named in tensors.items() for name, value in named.items()}


def test_accumulation_and_the_cache_do_not_change_a_run_with_everything(base, place):
    Image.linear_gradient("L").resize((64, 32)).save("cat/wide.png")
    flags = (*FEW, "--masked_loss", "--masked_prior_weight", "0.5", "--use_aspect_ratio_buckets", "--random_flip")
    flags += ("--caption_dropout", "0.5", "--max_train_steps", "4", "--lr_scheduler", "constant")
    whole = records(base, *flags, "--train_batch_size", "4", "--output_dir", "whole")
    parts = ("--train_batch_size", "2", "--gradient_accumulation_steps", "2", "--gradient_checkpointing")
    for name in ("written", "found"):
        again = records(base, *flags, *parts, "--latents_cache_dir", "cache", "--output_dir", name)
        assert [one["loss"] for one in again] == pytest.approx([one["loss"] for one in whole], rel=1e-4)
        ours, other = trained(name), trained("whole")
        for key, value in ours.items():
            torch.testing.assert_close(value, other[key], atol=2e-5, rtol=2e-3)
    assert all(torch.equal(value, trained("written")[key]) for key, value in trained("found").items())


def test_the_teacher_keeps_the_class_where_plain_training_loses_it(base, place):
    """What prior preservation is for: the adapted model stays closer to the base on the class prompt."""
    drift = {}
    for name, flags in {"plain": (), "teacher": (*TEACHER, "--prior_loss_weight", "5")}.items():
        config, adapter = parse(
            dreambooth.DreamBoothOptions,
            None,
            arguments(base, *flags, "--max_train_steps", "60", "--learning_rate", "1e-2", "--train_batch_size", "2"),
        )
        run = dreambooth.run(config, adapter)
        try:
            while True:
                next(run)
        except StopIteration as end:
            pipeline = end.value.base
        torch.manual_seed(0)
        batch = {"moments": torch.randn(8, 8, 8, 8), "seeds": torch.arange(8), "spread": torch.linspace(0.05, 0.95, 8)}
        batch |= pipeline.encode_prompt(["a photo of a cat"] * 8)
        with torch.no_grad():
            adapted = pipeline.predict(pipeline.denoiser, batch).prediction
            set_adapters(pipeline.denoiser, [])
            plain = pipeline.predict(pipeline.denoiser, batch).prediction
        drift[name] = (adapted - plain).square().mean().item()
    assert drift["teacher"] < 0.5 * drift["plain"]
