"""Adapters beside what else diffusers offers: packed weights, kernels of attention, ControlNets; what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor, nn

from diffusion_adapters import (
    FAMILIES,
    AdapterSet,
    coverage,
    delete_adapters,
    fuse_adapters,
    get_active_adapters,
    set_adapters,
)
from tests.hosts import HOSTS, READS_NO_WEIGHT, TOLERANCE, adapt, build, distance, merge, pipeline, run, sample
from train.benchmarks import models

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("same_backend_afterwards")


def nf4(linear: Any) -> nn.Module:
    """As bitsandbytes packs it to 4 bits."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    packed = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, quant_type="nf4", compute_dtype=torch.float32
    )
    packed.load_state_dict(linear.state_dict())
    return packed.to("cpu")


def int8(linear: Any) -> nn.Module:
    """As bitsandbytes packs it to 8 bits."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    packed = bitsandbytes.nn.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
    )
    packed.load_state_dict(linear.state_dict())
    return packed.to("cpu")


def gguf(linear: Any) -> nn.Module:
    """As a GGUF file has it, in blocks of 32 values of 8 bits."""
    library = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = library.GGMLQuantizationType.Q8_0
    packed = GGUFLinear(
        linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=torch.float32, device="cpu"
    )
    values = torch.from_numpy(library.quants.quantize(linear.weight.detach().numpy(), kind))
    packed.weight = GGUFParameter(values, quant_type=kind)
    packed.bias = linear.bias
    return packed


def pocket() -> Any:
    """The embedded UNet, whose widths blocks of 32 divide."""
    return UNet2DConditionModel.from_pretrained(ROOT / "pipelines" / "pocket" / "unet", local_files_only=True)


def predict(unet: Any) -> Tensor:
    """Its output for some noise."""
    arguments, extra = models.inputs(unet, 2)
    with torch.no_grad():
        return unet(*arguments, **extra).sample


@pytest.mark.parametrize(("by", "tolerance"), [(nf4, 1e-4), (int8, 0.1), (gguf, 1e-4)])
def test_packed_weights_keep_adapters(by: Callable[[Any], nn.Module], tolerance: float) -> None:
    """As on a base that has the rounded weights in full; 8-bit layers round what they are given, too.

    Nine adapters at 0.3 of the usual weights: at those, the model of few blocks makes a thousandth of rounding.
    """
    unet, plain, rounded = pocket(), pocket(), pocket()
    for path in AdapterSet(plain).projections():
        packed = by(plain.get_submodule(path)).requires_grad_(False)
        unet.set_submodule(path, packed)
        bias = 0 if packed.bias is None else packed.bias
        weight = (packed(torch.eye(packed.in_features)) - bias).t()
        for other in (plain, rounded):
            other.get_submodule(path).weight.data = weight.detach().clone()
    base = predict(unet)
    adapter_set = adapt(unet, READS_NO_WEIGHT)
    set_adapters(unet, READS_NO_WEIGHT, {name: 0.3 * weight for name, weight in adapter_set.weights.items()})
    wanted = predict(merge(plain, adapter_set))
    assert distance(predict(unet), wanted, predict(rounded)) < tolerance
    assert all(coverage(unet).values())
    with pytest.raises(RuntimeError, match="unquantized"):
        fuse_adapters(unet)
    set_adapters(unet, [])
    assert torch.equal(predict(unet), base)
    delete_adapters(unet, READS_NO_WEIGHT)
    assert torch.equal(predict(unet), base)


def backends() -> list[str]:
    """Those that diffusers has, but the one that downloads kernels."""
    return [name.value for name in AttentionBackendName if name in _AttentionBackendRegistry._backends]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("host", HOSTS[2:])
def test_every_attention_backend_that_runs_here(host: str, backend: str) -> None:
    """Before or after the adapters; what cannot run bare is skipped."""

    def choose(model: Any) -> nn.Module:
        model.set_attention_backend(backend)
        return model

    try:
        base = run(choose(build(host)), host)
    except Exception as error:
        pytest.skip(f"{backend} does not run here: {str(error).splitlines()[0][:80]}")
    model = build(host)
    adapter_set = adapt(model)
    got = run(choose(model), host)
    wanted = run(choose(merge(build(host), adapter_set)), host)
    assert distance(got, wanted, base) < TOLERANCE
    other = choose(build(host))
    adapt(other)
    assert torch.equal(run(other, host), got)


def test_controlnets_steer_an_adapted_denoiser() -> None:
    """The ControlNet is made from the bare UNet and has no adapters; it may have some of its own."""
    from diffusers import StableDiffusionControlNetPipeline

    def draw(pipe: Any, control: ControlNetModel) -> Tensor:
        steered = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=control)
        steered.set_progress_bar_config(disable=True)
        return sample(steered, image=torch.ones(1, 3, 16, 16), controlnet_conditioning_scale=1.0)

    def control_of(pipe: Any) -> ControlNetModel:
        torch.manual_seed(0)
        made = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8)).eval()
        for name, value in made.named_parameters():
            if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")) and value.ndim > 1:
                nn.init.normal_(value, std=0.1)
        return made

    pipe, plain = pipeline(), pipeline()
    control = control_of(plain)
    base = draw(plain, control)
    adapter_set = adapt(pipe)
    merge(plain.unet, adapter_set)
    assert get_active_adapters(StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=control))
    assert distance(draw(pipe, control), draw(plain, control), base) < TOLERANCE
    made = control_of(pipe)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), control.parameters(), strict=True))
    delete_adapters(pipe, list(FAMILIES))
    assert torch.equal(draw(pipe, control), base)
    own = adapt(control, READS_NO_WEIGHT)
    assert not torch.equal(draw(pipe, control), base)
    own.set_weights({})
    assert torch.equal(draw(pipe, control), base)
