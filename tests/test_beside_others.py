"""Adapters beside other adapters, in files of pipelines, in training loops and on quantized bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig
from torch import nn

from diffusion_adapters import (
    FAMILIES,
    delete_adapters,
    fuse_adapters,
    get_active_adapters,
    load_adapter,
    save_adapter,
    unfuse_adapters,
)
from tests.hosts import READS_NO_WEIGHT, TOLERANCE, adapt, build, distance, gradients_of, merge, pipeline, run, sample


@pytest.mark.parametrize("first", ["ours", "peft"])
def test_peft_lora_and_ours_act_together(first: str) -> None:
    """The base of our adapters is then W and PEFT's update of it."""
    host = "flux"
    model: Any = build(host)
    peft: Any = build(host)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False)

    def add_peft(one: Any) -> None:
        torch.manual_seed(9)
        one.add_adapter(config, adapter_name="peft")

    if first == "peft":
        add_peft(model)
        adapter_set = adapt(model)
    else:
        adapter_set = adapt(model)
        run(model, host)
        add_peft(model)
    add_peft(peft)
    both = build(host)
    with torch.no_grad():
        for path in adapter_set.projections():
            layer = peft.get_submodule(path)
            if hasattr(layer, "get_delta_weight"):
                both.get_submodule(path).weight += layer.get_delta_weight("peft")
    both, ours = merge(both, adapter_set), merge(build(host), adapter_set)
    base, ours_alone = run(build(host), host), run(ours, host)
    assert distance(run(model, host), run(both, host), base) < TOLERANCE
    model.disable_adapters()
    assert distance(run(model, host), ours_alone, base) < TOLERANCE
    model.enable_adapters()
    with pytest.raises(RuntimeError, match="unload PEFT adapters"):
        fuse_adapters(model)
    model.delete_adapters("peft")
    model.unload_lora()
    assert distance(run(model, host), ours_alone, base) < TOLERANCE
    delete_adapters(model, list(FAMILIES))
    assert torch.equal(run(model, host), base)


def test_a_pipeline_saved_with_adapters_is_the_bare_one(tmp_path: Path) -> None:
    pipe = pipeline()
    base = sample(pipe)
    keys = list(pipe.unet.state_dict())
    adapt(pipe)
    sample(pipe)
    assert list(pipe.unet.state_dict()) == keys
    pipe.save_pretrained(tmp_path / "saved")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(sample(again), base)
    unet, info = UNet2DConditionModel.from_pretrained(tmp_path / "saved" / "unet", output_loading_info=True)
    assert isinstance(unet, UNet2DConditionModel)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]


def test_pipelines_of_one_model_share_adapters() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = pipeline()
    adapt(pipe)
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert get_active_adapters(other) == get_active_adapters(pipe) != {}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_goes_on_after_sampling(mode: Any) -> None:
    """A picture between two steps, without gradients, neither stops the training nor shows old factors."""
    host = "flux"
    model = build(host)
    adapter_set = adapt(model)
    base = run(build(host), host)
    optimizer = torch.optim.SGD(adapter_set.parameters(), lr=0.01)
    for _ in range(2):
        with mode():
            got = run(model, host).clone()
        assert distance(got, run(merge(build(host), adapter_set), host), base) < TOLERANCE
        gradients = gradients_of(model, host, adapter_set)
        assert any(bool(gradient.any()) for gradient in gradients)
        optimizer.step()


def test_adapters_added_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    host = "flux"
    model = build(host)
    with torch.inference_mode():
        adapt(model)
        run(model, host)
        file = save_adapter(model, "lora", tmp_path / "a.safetensors")
        load_adapter(model, file, "again", trainable=True)
    from diffusion_adapters.attach import adapter_sets

    (adapter_set,) = adapter_sets(model).values()
    assert any(bool(gradient.any()) for gradient in gradients_of(model, host, adapter_set))


def test_only_adapters_train() -> None:
    host = "flux"
    model = build(host).requires_grad_(False)
    adapter_set = adapt(model)
    gradients = gradients_of(model, host, adapter_set)
    assert all(bool(gradient.any()) for gradient in gradients)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {id(p) for p in model.parameters()}.isdisjoint({id(p) for p in adapter_set.parameters()})


def test_fused_adapters_survive_replaced_processors() -> None:
    host = "unet_sd15"
    model: Any = build(host)
    adapter_set = adapt(model)
    wanted, base = run(merge(build(host), adapter_set), host), run(build(host), host)
    fuse_adapters(model)
    model.set_attn_processor(AttnProcessor2_0())
    assert distance(run(model, host), wanted, base) < TOLERANCE
    model.fuse_qkv_projections()
    assert distance(run(model, host), wanted, base) < TOLERANCE
    with pytest.raises(RuntimeError, match="unfuse_qkv_projections"):
        unfuse_adapters(model)
    model.unfuse_qkv_projections()
    unfuse_adapters(model)
    delete_adapters(model, list(FAMILIES))
    assert torch.equal(run(model, host), base)


def test_int8_weights_of_torchao_keep_adapters() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    host = "flux"
    model = build(host)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    base = run(model, host)
    adapter_set = adapt(model, READS_NO_WEIGHT)
    plain = build(host)
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                plain.get_submodule(path).weight.copy_(module.weight.dequantize())
    merge(plain, adapter_set)
    assert distance(run(model, host), run(plain, host), base) < 1e-2
    assert all(bool(gradient.any()) for gradient in gradients_of(model, host, adapter_set)[-4:])
    with pytest.raises(RuntimeError, match="unquantized"):
        fuse_adapters(model)
