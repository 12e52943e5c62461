"""Where captions, repeats and sizes may come from, what is said of them, and every mistake in them."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.folders import message, prompts, read, save, write_rows
from train.data import check_data, with_trigger
from train.dreambooth import DreamBoothOptions
from train.images import View, open_picture


def test_metadata_lists_pictures_captions_and_masks(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "deep" / "b.png")
    save(tmp_path / "unlisted.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "m.png")
    rows = [{"file_name": "a.png", "text": " a  red\ncat "}, "", {"file_name": "deep/b.png", "mask": "m.png"}]
    write_rows(tmp_path, *rows)
    found = read(tmp_path, masked_loss=True)
    assert prompts(found) == {"a.png": "a red cat", "deep/b.png": "a photo of sks cat"}
    assert [len(example.masks) for example in found.examples] == [0, 1]
    assert found.refused == {"unlisted.png": "not listed in metadata.jsonl"}
    write_rows(tmp_path, {"file_name": "a.png", "text": "one", "de": "zwei"})
    assert prompts(read(tmp_path, caption_column="de")) == {"a.png": "zwei"}


def test_bad_metadata_is_named_by_its_line(tmp_path):
    save(tmp_path / "a.png")
    place = f"{tmp_path}/metadata.jsonl, line 2"
    good = {"file_name": "a.png", "text": "a cat"}
    for bad, said in {
        '{"file_name": ': f"{place}: not JSON, Expecting value at column 15",
        '["a.png"]': f'{place}: must be an object of names and values, got ["a.png"]',
        '{"text": "a"}': f"{place}: no file_name; a line is such as ",
        '{"file_name": "b.png"}': f"{place}: file_name 'b.png': no such file in {tmp_path}",
        '{"file_name": "a.png", "text": 3}': f"{place}: text must be text, got 3",
        '{"file_name": "a.png", "mask": "c.png"}': f"{place}: mask 'c.png': no such file in {tmp_path}",
    }.items():
        write_rows(tmp_path, good, bad)
        assert message(tmp_path, masked_loss=True).startswith(said)
    write_rows(tmp_path, good)
    said = f"--caption_column fr: {tmp_path}/metadata.jsonl has no such column; it has file_name, text"
    assert message(tmp_path, caption_column="fr") == said
    (tmp_path / "metadata.jsonl").unlink()
    said = f"--caption_column fr: --instance_data_dir {tmp_path} has no metadata.jsonl to hold it"
    assert message(tmp_path, caption_column="fr") == said


def test_numbered_subfolders_are_repeated_and_name_their_caption(tmp_path):
    save(tmp_path / "3_sks cat" / "a.png")
    save(tmp_path / "3_sks cat" / "b.png")
    (tmp_path / "3_sks cat" / "b.txt").write_text("sks cat asleep")
    save(tmp_path / "notes" / "c.png")
    save(tmp_path / "d.png")
    found = read(tmp_path, repeats=2)
    expected = {"d.png": "a photo of sks cat", "3_sks cat/a.png": "sks cat", "3_sks cat/b.png": "sks cat asleep"}
    assert prompts(found) == expected
    assert [example.repeats for example in found.examples] == [2, 6, 6]
    assert len(found) == 14
    assert "  repeated: 1 picture x 2, 2 pictures x 6" in list(found.report())


def test_the_trigger_word_is_put_in(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("[trigger] on a [trigger]")
    found = read(tmp_path, trigger_word="sks cat", instance_prompt="a photo of [trigger]")
    assert prompts(found) == {"a.png": "sks cat on a sks cat", "b.png": "a photo of sks cat"}
    said = "a.txt has [trigger]; say what it stands for by --trigger_word"
    assert message(tmp_path).endswith(said)
    (tmp_path / "a.txt").unlink()
    assert message(tmp_path, instance_prompt="[trigger]").startswith("--instance_prompt has [trigger]; say what")
    config = DreamBoothOptions(
        instance_prompt="[trigger]", trigger_word="sks", validation_prompt=("a [trigger]", "a cat")
    )
    config = with_trigger(config)
    assert (config.instance_prompt, config.validation_prompt) == ("sks", ("a sks", "a cat"))


def test_captions_that_are_no_text_refuse_their_picture(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    assert read(tmp_path).refused == {"a.png": "its caption a.txt is not UTF-8 text"}


def test_options_without_effect_are_refused(tmp_path):
    save(tmp_path / "a.png")
    for options, said in {
        ("mask_data_dir", tmp_path): f"--mask_data_dir {tmp_path} has no effect without --masked_loss",
        ("masked_prior_weight", 0.5): "--masked_prior_weight 0.5 has no effect without --masked_loss",
        ("keep_tokens", 2): "--keep_tokens 2 has no effect without --shuffle_caption",
        ("dataset_config_name", "x"): "--dataset_config_name x has no effect without --dataset_name",
        ("dataset_name", "x"): "give --dataset_name or --instance_data_dir, not both",
        ("caption_separator", " "): "--caption_separator must have a character that is no space",
    }.items():
        assert message(tmp_path, **dict([options])) == said


def test_the_report_says_sizes_captions_and_repeats(tmp_path):
    save(tmp_path / "a.png", (32, 32))
    save(tmp_path / "b.png", (40, 20))
    save(tmp_path / "c.png", (9, 16))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("sks cat")
    found = read(tmp_path, use_aspect_ratio_buckets=True)
    buckets = {example.name: example.bucket for example in found.examples}
    assert buckets["a.png"] == (16, 16)
    assert buckets["b.png"][0] > buckets["b.png"][1]
    assert buckets["c.png"][0] < buckets["c.png"][1]
    lines = list(found.report())
    assert lines[0] == "3 pictures in 3 sizes, 2 with a caption of their own"
    assert "  enlarged c.png: 9 x 16" in lines
    assert "  16 x 16: 1 picture" in lines
    assert "  2 different captions; 1 picture without, trained with the instance prompt" in lines
    assert "    sks cat (x 2)" in lines


def test_a_view_says_where_it_lies_for_sdxl():
    whole = (400, 200)
    assert View((100, 100)).micro(whole) == (200, 400, 0, 50, 100, 100)
    assert View((100, 100), (0.0, 0.5)).micro(whole) == (200, 400, 0, 0, 100, 100)
    assert View((100, 100), (0.0, 0.5), flip=True).micro(whole) == (200, 400, 0, 100, 100, 100)
    assert View((100, 50), (0.3, 0.9)).micro((200, 200)) == (200, 200, 45, 0, 50, 100)
    image = Image.linear_gradient("L").resize(whole).convert("RGB")
    view = View((100, 50), (0.3, 0.9))
    top, left = view.micro(image.size)[2:4]
    scaled = image.resize((100, 50 * image.height // (image.width // 2)))
    assert scaled.crop((left, top, left + 100, top + 50)).size == view.cut(image).size


def test_sizes_are_those_of_the_file_upright_even_if_it_is_decoded_smaller(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", (4000, 2000), exif=exif)
    picture = open_picture(path, 32)
    assert picture.size == (2000, 4000)
    assert picture.image.height < 1000
    (example,) = read(tmp_path).examples
    assert example.micro[0][:2] == (4000, 2000)


def test_prior_options_are_checked_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    on = {"with_prior_preservation": True}
    cat = on | {"class_prompt": "a cat"}
    for options, said in (
        ({"class_prompt": "a cat"}, "--class_prompt a cat has no effect without --with_prior_preservation; add it"),
        ({"prior_source": "teacher"}, "--prior_source teacher has no effect without --with_prior_preservation; add it"),
        (on, '--with_prior_preservation needs --class_prompt, such as "a photo of a dog"'),
        (cat, "--with_prior_preservation needs --class_data_dir, or --prior_source teacher, which needs no images"),
        (cat | {"class_data_dir": tmp_path / "file"}, f"--class_data_dir {tmp_path}/file: {tmp_path}/file is a file"),
        (
            cat | {"class_data_dir": tmp_path, "prior_source": "teacher"},
            f"--class_data_dir {tmp_path} has no effect with --prior_source teacher",
        ),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            check_data(DreamBoothOptions(**options))
        assert str(caught.value).startswith(said)
    check_data(DreamBoothOptions(**cat, class_data_dir=tmp_path / "new"))
    check_data(DreamBoothOptions(**cat, prior_source="teacher"))
