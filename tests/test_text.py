"""The part of an adapter in the text encoders: it goes where the adapter goes, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusion_adapters import (
    add_adapter,
    add_text_adapter,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    export_lora,
    load_adapter,
    save_adapter,
    set_adapters,
)
from diffusion_adapters.file import read_adapter
from tests.tiny import save_pipeline

WORDS = ["a photo of sks cat"]


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
def said(pipe):
    return pipe.encode_prompt(WORDS, "cpu", 1, False)[0]


@torch.no_grad()
def trained(pipe, name="pet", rank=2, alpha=6.0):
    """A pipeline with an adapter in both places whose values are not those of its start."""
    adapters = add_adapter(pipe, name, "lora", rank=2)
    values = [*adapters.of(name).values()]
    text = add_text_adapter(pipe, name, rank, alpha)
    for value in [*(p for adapter in values for p in adapter.parameters()), *text]:
        value.add_(torch.randn_like(value) / 2)
    return pipe


def test_it_starts_at_the_base_and_is_trainable_in_fp32(pipe):
    before = said(pipe)
    text = add_text_adapter(pipe, "pet", 2)
    assert torch.equal(said(pipe), before)
    assert len(text) == 4 * 2
    assert [value for value in pipe.text_encoder.parameters() if value.requires_grad] == text
    pipe.text_encoder.to(torch.bfloat16)
    assert {value.dtype for value in add_text_adapter(pipe, "lora", 2)} == {torch.float32}


def test_a_file_holds_both_parts(folder, pipe, tmp_path):
    base = said(pipe)
    with_it = said(trained(pipe))
    assert not torch.equal(base, with_it)
    file = read_adapter(save_adapter(pipe, "pet", tmp_path / "pet.safetensors"))
    part = file.text["text_encoder"]
    assert (part.rank, part.alpha, set(part.target_modules)) == (2, 6.0, {"q_proj", "k_proj", "v_proj", "out_proj"})
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in part.tensors)

    fresh = load(folder)
    assert load_adapter(fresh, file.path) == "pet"
    assert torch.equal(said(fresh), with_it)
    assert not any(value.requires_grad for value in fresh.text_encoder.parameters())
    again = load(folder)
    load_adapter(again, file.path, trainable=True)
    assert sum(value.requires_grad for value in again.text_encoder.parameters()) == 8
    with pytest.raises(ValueError, match=r"pet.safetensors: it also changes text_encoder; load it onto a pipeline"):
        load_adapter(load(folder).unet, file.path)


def test_weights_are_those_of_the_adapter(pipe):
    base = said(pipe)
    whole = said(trained(pipe))
    set_adapters(pipe, ["pet"], 0.5)
    half = said(pipe)
    assert not torch.equal(half, whole)
    assert not torch.equal(half, base)
    for off in (lambda: set_adapters(pipe, []), lambda: set_adapters(pipe, ["pet"], 0.0)):
        off()
        assert torch.equal(said(pipe), base)
    set_adapters(pipe, ["pet"])
    assert torch.equal(said(pipe), whole)
    disable_adapters(pipe)
    assert torch.equal(said(pipe), base)
    enable_adapters(pipe)
    assert torch.equal(said(pipe), whole)
    assert sum(value.requires_grad for value in pipe.text_encoder.parameters()) == 8  # still trained


def test_deleted_it_leaves_the_text_encoder_as_it_was(pipe):
    before = {name: value.clone() for name, value in pipe.text_encoder.state_dict().items()}
    base = said(pipe)
    one = said(trained(pipe, "one"))
    trained(pipe, "two", rank=3)
    delete_adapters(pipe, "two")
    set_adapters(pipe, ["one"])
    assert torch.equal(said(pipe), one)
    delete_adapters(pipe, "one")
    assert torch.equal(said(pipe), base)
    after = pipe.text_encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not hasattr(pipe.text_encoder, "peft_config")


def test_a_file_that_does_not_fit_attaches_nothing(folder, pipe, tmp_path):
    file = save_adapter(trained(pipe), "pet", tmp_path / "pet.safetensors")
    other = load(folder)
    before = said(other)
    for layer in other.text_encoder.modules():
        if hasattr(layer, "q_proj"):
            layer.q_proj = torch.nn.Linear(16, 32)
    with pytest.raises(ValueError, match=r"pet.safetensors: text_encoder.\S+q_proj.lora_B.weight is missing, unexpect"):
        load_adapter(other, file)
    assert not hasattr(other.text_encoder, "peft_config")
    assert not other.unet._forward_pre_hooks
    assert before.shape == (1, 32, 16)


def test_stock_diffusers_reads_the_export(folder, pipe, tmp_path):
    words = said(trained(pipe))
    inputs = (torch.randn(1, 4, 8, 8), 10, words)
    with torch.no_grad():
        expected = pipe.unet(*inputs)[0]
    export_lora(pipe, "pet", tmp_path / "pytorch_lora_weights.safetensors")
    stock = load(folder)
    stock.load_lora_weights(tmp_path)
    torch.testing.assert_close(said(stock), words, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(stock.unet(*inputs)[0], expected, atol=1e-5, rtol=1e-4)
