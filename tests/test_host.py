"""What diffusers, PEFT, accelerate and torch do to a model with adapters: they act on, or an error names the remedy."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from diffusers.models import attention_processor
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig
from torch import Tensor, nn

from diffusion_adapters import (
    FAMILIES,
    add_adapter,
    coverage,
    delete_adapters,
    fuse_adapters,
    get_active_adapters,
    load_adapter,
    save_adapter,
    set_adapters,
    unfuse_adapters,
)
from tests.hosts import HOSTS, TOLERANCE, adapt, build, distance, inputs_in, merge, pipeline, run, sample, small, stir

Event = Callable[[Any], None]
READS_NO_WEIGHT = [family for family in FAMILIES if not FAMILIES[family].reads_weight]

every_host = pytest.mark.parametrize("host", HOSTS)


@pytest.fixture(autouse=True)
def same_backend_afterwards() -> Iterator[None]:
    """`set_attention_backend` is for the whole process: other tests compare bitwise with fresh ones."""
    with mock.patch.object(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend):
        yield


# ---- calls that replace, copy or fuse processors ---------------------------------------------------------------------


def fuse_qkv(model: Any) -> None:
    model.fuse_qkv_projections()


def fuse_and_unfuse_qkv(model: Any) -> None:
    model.fuse_qkv_projections()
    model.unfuse_qkv_projections()


def set_backend(model: Any) -> None:
    model.set_attention_backend("_native_math")


def set_and_reset_backend(model: Any) -> None:
    model.set_attention_backend("_native_math")
    model.reset_attention_backend()


def set_the_same_processors(model: Any) -> None:
    model.set_attn_processor(dict(model.attn_processors))


def slice_attention(model: Any) -> None:
    model.set_attention_slice("max")


def set_default_processors(model: Any) -> None:
    model.set_default_attn_processor()


def set_one_shared_processor(model: Any) -> None:
    model.set_attn_processor(AttnProcessor())


def ip_adapter_weights(tokens: int = 4, image_size: int = 6) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter for the tiny U-Net, as `load_ip_adapter` reads it from a file."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    widths = [8, 16, 8]  # of the cross-attentions in the order of `attn_processors`: down, up, middle
    bare: Any = build("unet_sd15")
    cross = [name for name in bare.attn_processors if "attn2" in name]
    widths = [bare.get_submodule(name.removesuffix(".processor")).to_k.out_features for name in cross]
    keys = {f"{2 * i + 1}.to_{part}_ip.weight": draw(width, 12) for i, width in enumerate(widths) for part in "kv"}
    project = {"proj.weight": draw(tokens * 12, image_size), "proj.bias": draw(tokens * 12)}
    project |= {"norm.weight": torch.ones(12), "norm.bias": torch.zeros(12)}
    return {"ip_adapter": keys, "image_proj": project}


def load_ip_adapter(model: Any) -> None:
    model._load_ip_adapter_weights([ip_adapter_weights()], low_cpu_mem_usage=False)


@contextmanager
def pretended_xformers() -> Iterator[None]:
    """xformers and a GPU, as far as `enable_xformers_memory_efficient_attention` and its processors look."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=settings.get("scale"))

    kernels = mock.Mock()
    kernels.ops.memory_efficient_attention = attend
    draw = torch.randn
    with (
        mock.patch.object(attention_processor, "xformers", kernels),
        mock.patch.object(attention_processor, "is_xformers_available", return_value=True),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch, "randn", lambda *args, device=None, **kwargs: draw(*args, **kwargs)),
    ):
        yield


UNET_EVENTS: list[Event] = [slice_attention, set_default_processors, set_one_shared_processor, load_ip_adapter]
COMMON_EVENTS: list[Event] = [
    fuse_qkv,
    fuse_and_unfuse_qkv,
    set_backend,
    set_and_reset_backend,
    set_the_same_processors,
]
CASES = [(host, event) for host in HOSTS[1:] for event in COMMON_EVENTS]
CASES += [("unet_sd15", event) for event in (*COMMON_EVENTS[:3], *UNET_EVENTS)]


def forward(model: nn.Module, host: str, grad: bool = False) -> Tensor:
    """As `run`, with a picture for the IP-Adapter if the model has one."""
    if getattr(model, "encoder_hid_proj", None) is None:
        return run(model, host, grad=grad)
    picture = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(5))
    plain = model.forward

    def with_picture(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, added_cond_kwargs={"image_embeds": [picture]}, **kwargs)

    with mock.patch.object(model, "forward", with_picture):
        return run(model, host, grad=grad)


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


# ---- compilation -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


COMPILED = [pytest.param(host, marks=() if host == "flux" else pytest.mark.slow) for host in HOSTS]
"""Tracing a U-Net takes ten times as long as two blocks of a transformer."""
FEW = {"target_modules": ["to_q"]}
"""Each adapter is traced: a few do."""


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("host", COMPILED)
def test_compiled_forward_and_gradients_are_equal(host: str, backend: str) -> None:
    model = build(host)
    adapter_set = adapt(model, **FEW)
    eager = run(model, host)
    gradients = gradients_of(model, host, adapter_set)
    compiled: Any = torch.compile(model, fullgraph=True, backend=backend)
    assert distance(run(compiled, host), eager, run(build(host), host)) < TOLERANCE
    for got, wanted in zip(gradients_of(compiled, host, adapter_set), gradients, strict=True):
        assert (got - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6


def gradients_of(model: Any, host: str, adapter_set: nn.Module) -> list[Tensor]:
    adapter_set.zero_grad()
    run(model, host, grad=True).square().mean().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in adapter_set.parameters()]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("host", COMPILED)
@pytest.mark.parametrize("trained", [pytest.param(False, marks=pytest.mark.slow), True], ids=["loaded", "trained"])
def test_new_weights_do_not_recompile(host: str, trained: bool) -> None:
    model = build(host)
    adapter_set = adapt(model, **FEW).requires_grad_(trained)
    base = run(build(host), host)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    names = list(FAMILIES)
    run(compiled, host)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for factor in (0.5, -0.7):
            set_adapters(model, names, [factor * (i + 1) for i in range(len(names))])
            wanted = run(merge(build(host), adapter_set), host)
            assert distance(run(compiled, host), wanted, base) < TOLERANCE
        stir(adapter_set.parameters(), seed=4)
        adapter_set.refresh()
        assert distance(run(compiled, host), run(merge(build(host), adapter_set), host), base) < TOLERANCE


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("host", COMPILED)
def test_every_verb_reaches_a_compiled_model(host: str) -> None:
    model = build(host)
    base = run(model, host)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    run(compiled, host)
    adapter_set = adapt(compiled, **FEW)
    adapted = run(merge(build(host), adapter_set), host)
    assert distance(run(compiled, host), adapted, base) < TOLERANCE
    set_adapters(compiled, list(FAMILIES), 0)
    assert torch.equal(run(compiled, host), base)
    set_adapters(compiled, list(FAMILIES), 0.5)
    wanted = run(merge(build(host), adapter_set), host)
    assert distance(run(compiled, host), wanted, base) < TOLERANCE
    fuse_adapters(compiled)
    assert distance(run(compiled, host), wanted, base) < TOLERANCE
    unfuse_adapters(compiled)
    assert distance(run(compiled, host), wanted, base) < TOLERANCE
    delete_adapters(compiled, list(FAMILIES))
    assert torch.equal(run(compiled, host), base)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("host", COMPILED)
@pytest.mark.parametrize(
    "in_place", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torch.compile", "model.compile"]
)
def test_processors_replaced_after_compiling_have_adapters(host: str, in_place: bool) -> None:
    model: Any = build(host)
    adapter_set = adapt(model, **FEW)
    wanted = run(merge(build(host), adapter_set), host)
    base = run(build(host), host)
    compiled: Any = model
    if in_place:
        model.compile(fullgraph=True, backend="eager")
    else:
        compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert distance(run(compiled, host), wanted, base) < TOLERANCE
    for _ in range(2):
        model.set_attn_processor({path: type(p)() for path, p in build(host).attn_processors.items()})
        assert distance(run(compiled, host), wanted, base) < TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_fused_projections_after_compiling_keep_adapters() -> None:
    host = "flux"
    model: Any = build(host)
    adapter_set = adapt(model, **FEW)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    run(compiled, host)
    model.fuse_qkv_projections()
    wanted = run(merge(build(host), adapter_set), host)
    assert distance(run(compiled, host), wanted, run(build(host), host)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_computes_the_same() -> None:
    host = "flux"
    model = build(host)
    adapter_set = adapt(model, **FEW)
    compiled = torch.compile(model, fullgraph=True)
    wanted = run(merge(build(host), adapter_set), host)
    assert distance(run(compiled, host), wanted, run(build(host), host)) < 1e-3


# ---- memory, precision, copies ---------------------------------------------------------------------------------------


@every_host
def test_gradient_checkpointing_gives_the_same_gradients(host: str) -> None:
    model: Any = build(host)
    adapter_set = adapt(model)
    model.train()
    plain = gradients_of(model, host, adapter_set)
    model.enable_gradient_checkpointing()
    again = gradients_of(model, host, adapter_set)
    assert any(bool(gradient.any()) for gradient in plain)
    assert all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))


def offload_sequentially(model: nn.Module) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


def offload_leaves(model: nn.Module) -> None:
    apply_group_offloading(model, torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


def offload_blocks(model: nn.Module) -> None:
    apply_group_offloading(
        model, torch.device("cpu"), torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


@pytest.mark.parametrize("offload", [offload_sequentially, offload_leaves, offload_blocks])
@pytest.mark.parametrize("host", ["flux"])
def test_offloading_after_adapters(host: str, offload: Event) -> None:
    model = build(host)
    adapter_set = adapt(model)
    wanted = run(model, host)
    gradients = gradients_of(model, host, adapter_set)
    offload(model)
    assert torch.equal(run(model, host), wanted)
    for got, plain in zip(gradients_of(model, host, adapter_set), gradients, strict=True):
        assert torch.equal(got, plain)


@pytest.mark.parametrize("offload", [offload_sequentially, offload_leaves, offload_blocks])
def test_offloading_before_adapters(offload: Event) -> None:
    host = "flux"
    model = build(host)
    offload(model)
    for family in FAMILIES:
        if FAMILIES[family].reads_weight and offload is offload_sequentially:
            with pytest.raises(RuntimeError, match=r"offloaded; add, load, fuse or export adapters before enabling"):
                add_adapter(model, family, family, **small(family))
        else:
            torch.manual_seed(3)
            own = add_adapter(model, family, family, **small(family))
    stir(own.parameters())
    twin = build(host)
    for family in get_active_adapters(model):
        twin_set = add_adapter(twin, family, family, **small(family))
    twin_set.load_state_dict(own.state_dict())
    assert distance(run(model, host), run(twin, host), run(build(host), host)) < TOLERANCE


def test_fusing_an_offloaded_model_is_refused() -> None:
    model = build("flux")
    adapt(model)
    wanted = run(model, "flux")
    offload_sequentially(model)
    with pytest.raises(RuntimeError, match=r"to_q.*without offloading"):
        fuse_adapters(model)
    assert torch.equal(run(model, "flux"), wanted)


@every_host
def test_fp8_storage_keeps_adapters(host: str) -> None:
    model, reference = build(host), build(host)
    adapter_set = adapt(model, READS_NO_WEIGHT)
    layerwise = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    apply_layerwise_casting(model, **layerwise)
    apply_layerwise_casting(reference, **layerwise)
    base = run(reference, host)
    got = run(model, host)
    with torch.no_grad():  # the reference: W rounded to fp8, then ΔW of the rounded W added in fp32
        plain = build(host)
        for (_, rounded), (_, value) in zip(reference.named_parameters(), plain.named_parameters(), strict=True):
            value.copy_(rounded.float())
    merge(plain, adapter_set)
    assert distance(got, run(plain, host), base) < TOLERANCE
    with pytest.raises(RuntimeError, match=r"cannot fuse into a Linear with torch.float8"):
        fuse_adapters(model)


@pytest.mark.parametrize("first", ["adapters", "cast"])
@pytest.mark.parametrize(("host", "dtype"), [*((host, torch.bfloat16) for host in HOSTS), ("flux", torch.float16)])
def test_half_precision_before_and_after(host: str, first: str, dtype: torch.dtype) -> None:
    model = build(host)
    if first == "cast":
        model.to(dtype)
    adapter_set = adapt(model)
    model.to(dtype)
    reference = merge(build(host), adapter_set)
    base = run(build(host), host)
    with inputs_in(dtype):
        got = run(model, host)
    assert all(parameter.dtype == torch.float32 for parameter in adapter_set.parameters())
    assert distance(got, run(reference, host), base) < (0.15 if dtype == torch.bfloat16 else 0.03)


def test_autocast_trains_fp32_adapters_of_a_bf16_base() -> None:
    """The gradients are as far from exact as those of a bf16 model's own weights are, and no further."""
    host = "flux"
    model = build(host)
    adapter_set = adapt(model)
    merged = merge(build(host), adapter_set)
    weights = nn.ParameterList(merged.get_submodule(path).weight for path in adapter_set.projections())

    def both() -> list[Tensor]:
        found = [gradients_of(model, host, adapter_set), gradients_of(merged, host, weights)]
        return [torch.cat([gradient.float().flatten() for gradient in gradients]) for gradients in found]

    exact = both()
    model.to(torch.bfloat16)
    merged.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), inputs_in(torch.bfloat16):
        rounded = both()
    assert {p.grad.dtype for p in adapter_set.parameters() if p.grad is not None} == {torch.float32}
    errors = [float((got - wanted).norm() / wanted.norm()) for got, wanted in zip(rounded, exact, strict=True)]
    assert errors[0] < 1.5 * errors[1]
    assert torch.cosine_similarity(rounded[0], exact[0], dim=0) > 0.8


@every_host
def test_a_copy_has_adapters_of_its_own(host: str) -> None:
    model = build(host)
    adapter_set = adapt(model)
    adapted, base = run(model, host), run(build(host), host)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, host), adapted)
    delete_adapters(twin, list(FAMILIES)[1:])
    set_adapters(twin, list(FAMILIES)[:1], 0.3)
    assert not torch.equal(run(twin, host), adapted)
    assert torch.equal(run(model, host), adapted)
    stir(adapter_set.parameters())
    assert not torch.equal(run(model, host), adapted)
    delete_adapters(model, list(FAMILIES))
    assert torch.equal(run(model, host), base)
    assert list(get_active_adapters(twin)) == list(FAMILIES)[:1]
    del model, adapter_set
    delete_adapters(twin, list(FAMILIES)[:1])
    assert torch.equal(run(twin, host), base)


def test_a_copied_pipeline_has_adapters_of_its_own() -> None:
    pipe = pipeline()
    base = sample(pipe)
    adapt(pipe)
    adapted = sample(pipe)
    twin = copy.deepcopy(pipe)
    delete_adapters(pipe, list(FAMILIES))
    assert torch.equal(sample(pipe), base)
    assert torch.equal(sample(twin), adapted)


def test_threads_share_a_model() -> None:
    host = "flux"
    model = build(host)
    adapt(model)
    torch.manual_seed(1)
    from tests.denoisers import ZOO

    calls = [ZOO[host].inputs(model) for _ in range(3)]
    wanted = [model(**call).sample.detach() for call in calls]
    failures: list[str] = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not torch.allclose(model(**calls[i]).sample, wanted[i], rtol=1e-5, atol=1e-6):
                    failures.append(f"thread {i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- beside other adapters, in files, in training --------------------------------------------------------------------


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


# ---- quantized bases -------------------------------------------------------------------------------------------------


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
