"""Memory, precision, copies: checkpointing, offloading, casts, copies and threads of a model with adapters."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import Tensor, nn

from diffusion_adapters import FAMILIES, add_adapter, delete_adapters, fuse_adapters, get_active_adapters, set_adapters
from tests.hosts import (
    HOSTS,
    READS_NO_WEIGHT,
    TOLERANCE,
    adapt,
    build,
    distance,
    gradients_of,
    inputs_in,
    merge,
    pipeline,
    run,
    sample,
    small,
    stir,
)
from tests.replacing import Event

every_host = pytest.mark.parametrize("host", HOSTS)


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
