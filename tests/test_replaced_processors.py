"""Calls of diffusers that replace, copy or fuse processors: adapters act on, or an error names the remedy."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from diffusion_adapters import FAMILIES, add_adapter, coverage, delete_adapters, load_adapter, save_adapter
from tests.hosts import HOSTS, READS_NO_WEIGHT, TOLERANCE, adapt, build, distance, merge, pipeline, run, sample
from tests.replacing import CASES, Event, forward, ip_adapter_weights, load_ip_adapter, pretended_xformers

pytestmark = pytest.mark.usefixtures("same_backend_afterwards")


@pytest.mark.parametrize("first", ["adapters", "event"])
@pytest.mark.parametrize(("host", "event"), CASES, ids=[f"{host}-{event.__name__}" for host, event in CASES])
def test_adapters_act_before_and_after(host: str, event: Event, first: str) -> None:
    model = build(host)
    if first == "event":
        event(model)
    adapter_set = adapt(model)
    if first == "adapters":
        run(model, host)
        event(model)
    base, wanted = build(host), merge(build(host), adapter_set)
    for plain in (base, wanted):
        event(plain)
    got = forward(model, host)
    assert distance(got, forward(wanted, host), forward(base, host)) < TOLERANCE
    assert all(coverage(model).values())
    delete_adapters(model, list(FAMILIES))
    assert torch.equal(forward(model, host), forward(base, host))


def test_one_shared_processor_is_wrapped_for_each_attention() -> None:
    model: Any = build("unet_sd15")
    adapt(model)
    model.set_attn_processor(AttnProcessor2_0())
    run(model, "unet_sd15")
    processors = list(model.attn_processors.values())
    assert len({id(processor) for processor in processors}) == len(processors)
    assert {processor.__class__ for processor in processors} == {AttnProcessor2_0}


def test_ip_adapter_can_be_scaled_and_unloaded() -> None:
    pipe, reference = pipeline(), pipeline()
    base = sample(pipe)
    adapter_set = adapt(pipe)
    merge(reference.unet, adapter_set)
    wanted = sample(reference)
    weights = ip_adapter_weights_of(pipe.unet)
    picture = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(5))
    for one in (pipe, reference):
        one.unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
    outputs = {}
    for scale in (1.0, 0.3):
        for one in (pipe, reference):
            one.set_ip_adapter_scale(scale)
        got, outputs[scale] = (sample(one, ip_adapter_image_embeds=[picture]) for one in (pipe, reference))
        assert distance(got, outputs[scale], base) < TOLERANCE
    assert not torch.equal(outputs[1.0], outputs[0.3])
    pipe.unload_ip_adapter()
    assert distance(sample(pipe), wanted, base) < TOLERANCE


def ip_adapter_weights_of(unet: Any) -> dict[str, dict[str, Tensor]]:
    """As `ip_adapter_weights`, for the U-Net of the tiny pipeline, whose prompts are wider."""
    weights = ip_adapter_weights()
    wide = unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(6)
    project = weights["image_proj"]
    weights["ip_adapter"] = {
        key: torch.randn(len(value), wide, generator=generator) for key, value in weights["ip_adapter"].items()
    }
    for key, shape in {"proj.weight": (4 * wide, 6), "proj.bias": (4 * wide,)}.items():
        project[key] = torch.randn(shape, generator=generator)
    project |= {"norm.weight": torch.ones(wide), "norm.bias": torch.zeros(wide)}
    return weights


def test_image_prompt_parts_with_attention_are_not_taken_for_the_base(tmp_path: Path) -> None:
    """An IP-Adapter Plus brings attention modules of its own; files fit with and without it."""
    from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection

    def load_plus(model: Any) -> None:
        load_ip_adapter(model)
        plus = IPAdapterPlusImageProjection(
            embed_dims=6, output_dims=12, hidden_dims=8, depth=1, dim_head=4, heads=2, num_queries=4
        )
        model.encoder_hid_proj = MultiIPAdapterImageProjection([plus])

    plain, plus = build("unet_sd15"), build("unet_sd15")
    load_plus(plus)
    for saver, loader in ((plain, plus), (plus, plain)):
        add_adapter(saver, "one", rank=1)
        load_adapter(loader, save_adapter(saver, "one", tmp_path / "one.safetensors"), "two")
        delete_adapters(saver, "one")
        delete_adapters(loader, "two")


def test_perturbed_attention_guidance_keeps_adapters() -> None:
    from diffusers import StableDiffusionPAGPipeline

    pipe, reference = pipeline(), pipeline()
    plain = {"pag_scale": 3.0, "guidance_scale": 2.0}
    guided = [StableDiffusionPAGPipeline.from_pipe(one, pag_applied_layers=["mid", "up"]) for one in (pipe, reference)]
    base = sample(guided[0], **plain)
    adapter_set = adapt(pipe)
    merge(reference.unet, adapter_set)
    assert distance(sample(guided[0], **plain), sample(guided[1], **plain), base) < TOLERANCE
    assert distance(sample(pipe), sample(reference), base) < TOLERANCE  # the pipeline has put the processors back


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("unet_sd15", "XFormersAttnProcessor"),
        ("unet_deepfloyd", "XFormersAttnAddedKVProcessor"),
        ("sd3", "XFormersJointAttnProcessor"),
    ],
)
@pytest.mark.parametrize("first", ["adapters", "xformers"])
def test_xformers_gets_the_processors_of_the_bare_model(host: str, kind: str, first: str) -> None:
    model: Any = build(host)
    bare: Any = build(host)
    with pretended_xformers():
        if first == "xformers":
            model.enable_xformers_memory_efficient_attention()
        adapter_set = adapt(model, READS_NO_WEIGHT)
        if first == "adapters":
            model.enable_xformers_memory_efficient_attention()
        bare.enable_xformers_memory_efficient_attention()
        assert [p.__class__ for p in model.attn_processors.values()] == [
            p.__class__ for p in bare.attn_processors.values()
        ]
        assert {p.__class__.__name__ for p in model.attn_processors.values()} == {kind}
        if host == "unet_sd15":  # the others hand xformers a layout that the stand-in does not know
            wanted = merge(build(host), adapter_set)
            wanted.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
            assert distance(run(model, host), run(wanted, host), run(bare, host)) < TOLERANCE
        for one in (model, bare):
            one.disable_xformers_memory_efficient_attention()
    assert [p.__class__ for p in model.attn_processors.values()] == [p.__class__ for p in bare.attn_processors.values()]
    if host == "unet_sd15":  # of the others diffusers does not find the default processors again
        plain = merge(build(host), adapter_set)
        assert distance(run(model, host), run(plain, host), run(build(host), host)) < TOLERANCE


def test_custom_attention_settings_reach_the_processor() -> None:
    """diffusers filters keyword arguments by the processor's signature; ours has the one of the wrapped."""

    def parameters(processor: Any) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(processor.__call__).parameters.values()]

    for host in HOSTS:
        bare: Any = build(host)
        model: Any = build(host)
        adapt(model, ["lora"])
        for own, plain in zip(model.attn_processors.values(), bare.attn_processors.values(), strict=True):
            assert parameters(own) == parameters(plain)
            assert own.__class__ is plain.__class__
            assert isinstance(own, type(plain))
