"""New tokens: known while their adapter is active, gone with it; nothing but their rows is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from diffusion_adapters import (
    add_adapter,
    add_text_adapter,
    add_tokens,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    export_lora,
    load_adapter,
    save_adapter,
    set_adapters,
)
from diffusion_adapters.file import read_adapter
from diffusion_adapters.tokens import PULL, keep_norm, token_rows
from tests import pipelines
from tests.tiny import save_pipeline

PROMPT = "a photo of TOK cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def pipe(folder):
    return load(folder)


def load(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.text_encoder.requires_grad_(False)
    return pipe


@torch.no_grad()
def said(pipe, prompt=PROMPT):
    return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


def ids(pipe, prompt=PROMPT):
    return pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer)).input_ids


def attached(pipe, name="pet", words=("TOK",), count=2, **more):
    add_adapter(pipe, name, "lora", rank=2)
    return add_tokens(pipe, name, words, count, **more)


def test_rows_stand_where_their_tokens_are(pipe):
    """As if the embedding had been resized and its new rows written, which is what diffusers' scripts do."""
    base, size, known = said(pipe), len(pipe.tokenizer), ids(pipe)
    (rows,) = attached(pipe)
    assert ids(pipe) == [known[0], *known[1:4], size, size + 1, *known[-2:]]
    found = said(pipe)
    assert not torch.equal(found, base)

    resized = copy.deepcopy(pipe.text_encoder)
    for hooks in (resized.get_input_embeddings()._forward_pre_hooks, resized.get_input_embeddings()._forward_hooks):
        hooks.clear()
    resized.resize_token_embeddings(size + 2)
    resized.get_input_embeddings().weight.data[-2:] = rows.detach()
    text = pipe.tokenizer(
        [pipe.maybe_convert_prompt(PROMPT, pipe.tokenizer)], padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        torch.testing.assert_close(found, resized(text.input_ids)[0], rtol=0, atol=1e-6)


def test_only_the_rows_get_a_gradient(pipe):
    (rows,) = attached(pipe)
    pipe.unet.requires_grad_(False)
    pipe.encode_prompt(PROMPT, "cpu", 1, False)[0].square().sum().backward()
    assert rows.grad.abs().sum(1).min() > 0
    assert all(value.grad is None for value in pipe.text_encoder.parameters())
    rows.grad = None
    pipe.encode_prompt("a photo of sks cat", "cpu", 1, False)[0].square().sum().backward()
    assert not rows.grad.any()


def test_a_prompt_without_them_is_bitwise_the_base(pipe):
    other = "a red cat in water TOKEN tok"
    base = said(pipe, other)
    attached(pipe)
    assert torch.equal(said(pipe, other), base)


def test_they_start_as_a_word_or_at_the_deviation_of_the_embedding(pipe):
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    cat = pipe.tokenizer("cat", add_special_tokens=False).input_ids
    (rows,) = attached(pipe, "word", initializer="cat")
    assert torch.equal(rows.detach(), table[cat * 2])
    torch.manual_seed(0)
    (drawn,) = attached(pipe, "drawn", ("NEW",), 200)
    assert float(drawn.detach().std()) == pytest.approx(float(table.std()), rel=0.05)
    with pytest.raises(ValueError, match="'' is no word that new tokens could start from"):
        add_tokens(pipe, "word", ("MORE",), initializer="")


def test_the_deviation_is_pulled_back_as_published(pipe):
    (rows,) = attached(pipe)
    deviation = float(pipe.text_encoder.get_input_embeddings().weight.std())
    with torch.no_grad():
        rows.mul_(3)
    before = rows.detach().clone()
    keep_norm(pipe)
    torch.testing.assert_close(rows.detach(), before * (deviation / float(before.std())) ** PULL)
    rows.requires_grad_(False)
    after = rows.detach().clone()
    keep_norm(pipe)
    assert torch.equal(rows, after)


def test_known_while_the_adapter_is_active(pipe):
    base, numbers = said(pipe), ids(pipe)
    attached(pipe)
    whole = said(pipe)
    for off in (lambda: set_adapters(pipe, []), lambda: set_adapters(pipe, "pet", 0.0), lambda: disable_adapters(pipe)):
        off()
        assert ids(pipe) == numbers
        assert torch.equal(said(pipe), base)
        enable_adapters(pipe)
        set_adapters(pipe, "pet", 0.5)
        assert torch.equal(said(pipe), whole)  # a word is known or not


def test_several_at_once_and_deleted_one_by_one(pipe):
    backend, state = pipe.tokenizer.backend_tokenizer, list(pipe.text_encoder.state_dict())
    base, both = said(pipe), "a photo of TOK and NEW cat"
    attached(pipe, "one")
    one = said(pipe)
    attached(pipe, "two", ("NEW", "OTHER"), 3)
    two = said(pipe, "a NEW cat")
    assert torch.equal(said(pipe), one)
    together = said(pipe, both)
    assert len(set(ids(pipe, both))) == len(ids(pipe, "a photo of and cat")) + 5
    set_adapters(pipe, ["two"])
    assert torch.equal(said(pipe, "a NEW cat"), two)
    assert torch.equal(said(pipe), base)
    set_adapters(pipe, ["two", "one"])
    assert torch.equal(said(pipe, both), together)
    delete_adapters(pipe, "one")
    assert torch.equal(said(pipe, "a NEW cat"), two)
    delete_adapters(pipe, "two")
    assert pipe.tokenizer.backend_tokenizer is backend
    assert list(pipe.text_encoder.state_dict()) == state
    embedding = pipe.text_encoder.get_input_embeddings()
    assert not embedding._forward_hooks
    assert not embedding._forward_pre_hooks
    assert torch.equal(said(pipe), base)


def test_a_file_holds_them(folder, pipe, tmp_path):
    attached(pipe)
    text = add_text_adapter(pipe, "pet", 2)
    with torch.no_grad():
        for value in text:
            value.add_(torch.randn_like(value))
    file = save_adapter(pipe, "pet", tmp_path / "pet.safetensors")
    part = read_adapter(file).tokens["text_encoder"]
    assert part.tokens == ("TOK", "TOK_1")
    fresh = load(folder)
    load_adapter(fresh, file)
    assert torch.equal(said(fresh), said(pipe))
    assert [rows.requires_grad for rows in token_rows(fresh)] == [False]
    delete_adapters(fresh, "pet")
    again = load_adapter(fresh, file, "again", trainable=True)
    assert [rows.requires_grad for rows in token_rows(fresh)] == [True]
    before = said(fresh)
    with pytest.raises(ValueError, match=r"pet.safetensors: token 'TOK' is one of adapter 'again' too; delete"):
        load_adapter(fresh, file, "other")
    assert torch.equal(said(fresh), before)
    assert f":{again}" in fresh.text_encoder.peft_config
    assert ":other" not in fresh.text_encoder.peft_config
    with pytest.raises(ValueError, match=r"pet.safetensors: it also "):
        load_adapter(load(folder).unet, file)


def test_what_cannot_be_added_changes_nothing(pipe):
    attached(pipe, "one")
    numbers = ids(pipe)
    for words, line in (
        (("cat",), "token 'cat' is one that the tokenizer knows; a new one needs another name"),
        (("two words",), "token 'two words' must be one word"),
        (("NEW", "TOK"), "token 'TOK' is one of adapter 'one' too"),
    ):
        with pytest.raises(ValueError, match=line):
            add_tokens(pipe, "two", words)
        assert ids(pipe) == numbers
    for name, line in (("sd3", "text_encoder_3 is a T5EncoderModel; new tokens go into CLIP"), ("sana", "Gemma2Model")):
        with pytest.raises(ValueError, match=line):
            add_tokens(pipelines.build(name), "pet")


def test_tokens_that_others_add_later_are_not_lost(pipe):
    attached(pipe)
    state = {"<other>": torch.randn(16)}
    ours = said(pipe)
    pipe.load_textual_inversion(state, token="<other>")
    assert torch.equal(said(pipe), ours)
    theirs = said(pipe, "a photo of <other>")
    with pytest.raises(RuntimeError, match="given other tokens after those of adapter 'pet'; take them away first"):
        set_adapters(pipe, [])
    assert torch.equal(said(pipe, "a photo of <other>"), theirs)


def test_two_encoders_and_the_end_of_a_text(tmp_path):
    """SDXL; its configurations name 2 as the end, and then transformers takes the largest number for it."""
    pipe = pipelines.build("sdxl")
    readers = [m for e in (pipe.text_encoder, pipe.text_encoder_2) for m in e.modules() if hasattr(m, "eos_token_id")]
    for reader in readers:
        reader.eos_token_id = 2

    @torch.no_grad()
    def told(prompt):
        return pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[::2]

    plain, before = told("a photo of a cat"), told(PROMPT)
    first, second = attached(pipe)
    assert first.shape[1] != second.shape[1] or not torch.equal(first, second)
    assert all(torch.equal(one, other) for one, other in zip(told("a photo of a cat"), plain, strict=True))
    embeds, pooled = told(PROMPT)
    assert not torch.equal(embeds, before[0])
    long = told(PROMPT + " on a beach")[1]
    assert not torch.equal(pooled, long)  # it is not read off at the new token, whose number is the largest
    export_lora(pipe, "pet", tmp_path / "pet.safetensors")
    emb = load_file(tmp_path / "pet_emb.safetensors")
    stock = pipelines.build("sdxl")
    for key, encoder, tokenizer in (
        ("clip_l", stock.text_encoder, stock.tokenizer),
        ("clip_g", stock.text_encoder_2, stock.tokenizer_2),
    ):
        stock.load_textual_inversion(emb[key], token="TOK", text_encoder=encoder, tokenizer=tokenizer)
    spelled = PROMPT.replace("TOK", "TOK TOK_1")  # stock finds no capitals, which its tokenizer lowers
    with torch.no_grad():
        theirs = stock.encode_prompt(spelled, device="cpu", do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(embeds, theirs, rtol=0, atol=1e-6)
    delete_adapters(pipe, "pet")
    assert [reader.eos_token_id for reader in readers] == [2, 2]


def test_a_copy_of_a_pipeline_has_its_own(pipe):
    (rows,) = attached(pipe)
    twin = copy.deepcopy(pipe.components)
    other = StableDiffusionPipeline(**twin, requires_safety_checker=False)
    (theirs,) = token_rows(other)
    with torch.no_grad():
        theirs.mul_(2)
    assert not torch.equal(said(pipe), said(other))
    delete_adapters(other, "pet")
    assert torch.equal(rows * 2, theirs)
    assert len(ids(pipe)) == len(ids(pipe, "a photo of sks cat")) + 1
