"""The verbs, on a pipeline and on a denoiser: what they do to the output, and what they refuse in which words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusion_adapters
from diffusion_adapters import (
    FAMILIES,
    add_adapter,
    coverage,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    fuse_adapters,
    get_active_adapters,
    list_adapters,
    load_adapter,
    save_adapter,
    set_adapters,
    unfuse_adapters,
)
from tests.hosts import (
    HOST,
    TOLERANCE,
    adapt,
    bits,
    build,
    distance,
    merge,
    one_and_two,
    pipeline,
    run,
    same_bits,
    sample,
    stir,
)

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def base() -> Tensor:
    return run(build(HOST), HOST)


@pytest.mark.parametrize(
    ("names", "adapter_weights", "active"),
    [
        ("one", None, {"one": 1.0}),
        ("two", 0.5, {"two": 0.5}),
        (["one", "two"], 0.5, {"one": 0.5, "two": 0.5}),
        (["one", "two"], [0.5, -2], {"one": 0.5, "two": -2.0}),
        (("two", "one"), (0.5, 2.0), {"two": 0.5, "one": 2.0}),
        (["one", "two"], {"two": 0.25}, {"one": 1.0, "two": 0.25}),
        (["one", "two"], [0.0, 1.0], {"one": 0.0, "two": 1.0}),
        ([], None, {}),
    ],
)
def test_weights_are_a_number_a_list_or_a_mapping(
    model: nn.Module, base: Tensor, names: Any, adapter_weights: Any, active: dict[str, float]
) -> None:
    adapter_set = one_and_two(model)
    set_adapters(model, names, adapter_weights)
    assert get_active_adapters(model) == active
    output = run(model, HOST)
    if active:
        assert distance(output, run(merge(build(HOST), adapter_set), HOST), base) < TOLERANCE
    else:
        assert torch.equal(output, base)


@pytest.mark.parametrize(
    ("names", "adapter_weights", "error", "text"),
    [
        ("three", None, ValueError, r"unknown adapter 'three', .*available: one, two"),
        ("tow", None, ValueError, r"unknown adapter 'tow', did you mean 'two'\?"),
        (["one", "two"], [1.0], ValueError, r"1 adapter_weights for 2 adapters: one, two"),
        (["one"], {"two": 1.0}, ValueError, r"adapter_weights names adapters that are not in names: two"),
        (["one", "one"], [1.0, 2.0], ValueError, r"'one' .*twice|twice.*'one'"),
        ("one", float("nan"), ValueError, r"the weight of adapter 'one' must be a finite number, got nan"),
        ("one", float("inf"), ValueError, r"must be a finite number, got inf"),
        ("one", "0.5", ValueError, r"must be a finite number, got '0.5'"),
        ("one", True, ValueError, r"must be a finite number, got True"),
    ],
)
def test_wrong_weights_and_names_change_nothing(
    model: nn.Module, names: Any, adapter_weights: Any, error: type[Exception], text: str
) -> None:
    one_and_two(model)
    set_adapters(model, ["one", "two"], [0.5, 0.7])
    before = run(model, HOST)
    with pytest.raises(error, match=text):
        set_adapters(model, names, adapter_weights)
    assert get_active_adapters(model) == {"one": 0.5, "two": 0.7}
    assert torch.equal(run(model, HOST), before)


def test_a_pipeline_takes_every_verb(tmp_path: Path) -> None:
    pipe = pipeline()
    bare = sample(pipe)
    adapter_set = adapt(pipe)
    names = list(FAMILIES)
    assert list(list_adapters(pipe)) == names
    assert [info.family for info in list_adapters(pipe).values()] == names
    assert list(get_active_adapters(pipe)) == names
    adapted = sample(pipe)
    reference = pipeline()
    merge(reference.unet, adapter_set)
    assert distance(adapted, sample(reference), bare) < TOLERANCE
    assert all(coverage(pipe).values())
    assert all(place.startswith("unet.") for place in coverage(pipe))

    disable_adapters(pipe)
    assert get_active_adapters(pipe) == {}
    assert torch.equal(sample(pipe), bare)
    enable_adapters(pipe)
    assert torch.equal(sample(pipe), adapted)

    before = bits(pipe.unet)
    fuse_adapters(pipe)
    assert distance(sample(pipe), adapted, bare) < TOLERANCE
    unfuse_adapters(pipe)
    assert same_bits(pipe.unet, before)
    assert torch.equal(sample(pipe), adapted)

    weights = get_active_adapters(pipe)
    files = [save_adapter(pipe, name, tmp_path / f"{name}.safetensors") for name in names]
    delete_adapters(pipe, names)
    assert list_adapters(pipe) == {}
    assert torch.equal(sample(pipe), bare)
    assert [load_adapter(pipe, file, adapter_weight=weights[file.stem]) for file in files] == names
    assert torch.equal(sample(pipe), adapted)


def test_coverage_tells_what_ran(model: nn.Module) -> None:
    add_adapter(model, "one", rank=1, target_modules=["single_transformer_blocks"])
    assert set(coverage(model).values()) == {False}
    assert all(place.startswith("transformer.single_transformer_blocks.") for place in coverage(model))
    run(model, HOST)
    assert set(coverage(model).values()) == {True}
    set_adapters(model, [])
    assert coverage(model) == {}


def test_deleting_leaves_no_trace(model: nn.Module, base: Tensor) -> None:
    processors = {path: type(p) for path, p in model.attn_processors.items()}  # type: ignore[operator,union-attr]
    adapt(model)
    run(model, HOST)
    delete_adapters(model, list(FAMILIES))
    assert {path: type(p) for path, p in model.attn_processors.items()} == processors  # type: ignore[operator,union-attr]
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert torch.equal(run(model, HOST), base)


def test_deleting_one_keeps_the_others(model: nn.Module, base: Tensor) -> None:
    adapter_set = one_and_two(model)
    delete_adapters(model, "one")
    assert list(list_adapters(model)) == ["two"]
    assert distance(run(model, HOST), run(merge(build(HOST), adapter_set), HOST), base) < TOLERANCE
    with pytest.raises(ValueError, match=r"unknown adapter 'one'"):
        delete_adapters(model, ["two", "one"])
    assert list(list_adapters(model)) == ["two"]


@every_family
def test_a_written_weight_is_taken_up(model: nn.Module, base: Tensor, family: str) -> None:
    """In place, or past autograd by `.data` and then `refresh()`."""
    adapter_set = adapt(model, [family])
    run(model, HOST)
    stir(adapter_set.parameters(), seed=5)
    wanted = run(merge(build(HOST), adapter_set), HOST)
    assert distance(run(model, HOST), wanted, base) < TOLERANCE
    for parameter in adapter_set.parameters():
        parameter.data.mul_(0.5)
    adapter_set.refresh()
    wanted = run(merge(build(HOST), adapter_set), HOST)
    assert distance(run(model, HOST), wanted, base) < TOLERANCE


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_of_an_optimizer_is_taken_up(model: nn.Module, base: Tensor, fused: bool) -> None:
    """Fused ones write to parameters without a trace in their versions."""
    adapter_set = one_and_two(model)
    before = run(model, HOST)
    for parameter in adapter_set.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(adapter_set.parameters(), lr=0.1, fused=fused).step()
    wanted = run(merge(build(HOST), adapter_set), HOST)
    assert distance(before, wanted, base) > TOLERANCE
    assert distance(run(model, HOST), wanted, base) < TOLERANCE


def test_a_pipeline_of_several_denoisers(tmp_path: Path) -> None:
    parts = {"transformer": build(HOST), "transformer_2": build(HOST, seed=3)}
    pipe = SimpleNamespace(components={**parts, "vae": nn.Linear(1, 1), "unet": None})
    bare = [run(part, HOST) for part in parts.values()]
    with pytest.raises(ValueError, match=r"several denoisers, pass one of them: transformer, transformer_2"):
        add_adapter(pipe, "one", rank=1)
    for part in parts.values():
        stir(add_adapter(part, "one", rank=1).parameters())
    stir(add_adapter(parts["transformer_2"], "two", rank=1).parameters(), seed=8)
    set_adapters(pipe, ["one", "two"], [0.5, 0.7])
    assert get_active_adapters(parts["transformer"]) == {"one": 0.5}
    assert get_active_adapters(parts["transformer_2"]) == {"one": 0.5, "two": 0.7}
    with pytest.raises(ValueError, match="finite"):
        set_adapters(pipe, ["one", "two"], [0.1, float("nan")])
    assert get_active_adapters(pipe) == {"one": 0.5, "two": 0.7}
    adapted = [run(part, HOST) for part in parts.values()]
    files = [save_adapter(pipe, name, tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    delete_adapters(pipe, ["one", "two"])
    assert all(torch.equal(run(part, HOST), out) for part, out in zip(parts.values(), bare, strict=True))
    for file, weight in zip(files, (0.5, 0.7), strict=True):
        load_adapter(pipe, file, adapter_weight=weight)
    assert all(torch.equal(run(part, HOST), out) for part, out in zip(parts.values(), adapted, strict=True))


def test_fusing_several_denoisers_is_all_or_nothing() -> None:
    parts = {"transformer": build(HOST), "transformer_2": build(HOST, seed=3)}
    pipe = SimpleNamespace(components=parts)
    for part in parts.values():
        last = add_adapter(part, "one", rank=1)
        stir(last.parameters())
    before = bits(parts["transformer"])
    with torch.no_grad():
        next(last.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        fuse_adapters(pipe)
    assert same_bits(parts["transformer"], before)
    set_adapters(pipe, "one", 0.5)  # not while something is fused


def test_loading_with_a_wrong_weight_attaches_nothing(model: nn.Module, base: Tensor, tmp_path: Path) -> None:
    add_adapter(model, "kept", rank=1)
    file = save_adapter(model, "kept", tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="the weight of adapter 'one' must be a finite number, got nan"):
        load_adapter(model, file, adapter_weight=float("nan"))
    assert list(list_adapters(model)) == ["kept"]
    assert torch.equal(run(model, HOST), base)


def test_every_public_name_is_there() -> None:
    assert sorted(set(diffusion_adapters.__all__)) == sorted(diffusion_adapters.__all__)
    assert all(hasattr(diffusion_adapters, name) for name in diffusion_adapters.__all__)


@pytest.mark.parametrize("name", ["train", "half", "keys", "parameters"])
def test_an_adapter_may_have_the_name_of_a_method(model: nn.Module, base: Tensor, name: str) -> None:
    stir(add_adapter(model, name, rank=1).parameters())
    assert not torch.equal(run(model, HOST), base)
    delete_adapters(model, name)
    assert torch.equal(run(model, HOST), base)
