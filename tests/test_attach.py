"""The verbs, on a pipeline and on a denoiser: what they do to the output, and what they refuse in which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusion_adapters
from diffusion_adapters import (
    FAMILIES,
    AdapterSet,
    add_adapter,
    coverage,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    export_lora,
    fuse_adapters,
    get_active_adapters,
    list_adapters,
    load_adapter,
    save_adapter,
    set_adapters,
    unfuse_adapters,
)
from diffusion_adapters.attach import match_targets
from diffusion_adapters.safe import read_safetensors
from tests.hosts import TOLERANCE, adapt, build, distance, merge, pipeline, run, sample, small, stir

HOST = "flux"
PLACE = "transformer_blocks.0.attn.to_q"

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def model() -> nn.Module:
    return build(HOST)


@pytest.fixture(scope="module")
def base() -> Tensor:
    return run(build(HOST), HOST)


def two(model: Any) -> AdapterSet:
    """Adapters `one` and `two` with an effect."""
    add_adapter(model, "one", rank=2)
    adapter_set = add_adapter(model, "two", rank=1)
    stir(adapter_set.parameters())
    return adapter_set


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same_bits(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(value.view(torch.uint8), before[key].view(torch.uint8)) for key, value in bits(model).items()
    )


# ---- weights, names, on and off --------------------------------------------------------------------------------------


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
    adapter_set = two(model)
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
    two(model)
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
    adapter_set = two(model)
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
    adapter_set = two(model)
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


# ---- adding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        (
            "new",
            {"family": "lroa"},
            ValueError,
            r"unknown adapter family 'lroa', did you mean 'lora'\? available: .*lora",
        ),
        ("new", {"rnk": 4}, ValueError, r"unknown option 'rnk' for LoRAConfig, did you mean 'rank'\?"),
        ("new", {"rank": 0}, ValueError, r"rank must be at least 1, got 0"),
        ("new", {"rank": "4"}, TypeError, r"rank must be int, got '4'"),
        ("new", {"alpha": 0.0}, ValueError, r"alpha must be greater than 0, got 0"),
        ("new", {"alpha": float("nan")}, ValueError, r"alpha must be .*got nan"),
        ("new", {"alpha": float("inf")}, ValueError, r"alpha must be .*got inf"),
        ("new", {"target_modules": ["to_qq"]}, ValueError, r"unknown target 'to_qq'.*did you mean 'to_q'"),
        ("new", {"target_modules": ["to_q", "attn3"]}, ValueError, r"unknown target 'attn3' in target_modules"),
        ("new", {"target_modules": []}, ValueError, r"target_modules"),
        ("taken", {}, ValueError, r"adapter name 'taken' is already in use; delete it first or choose another"),
        ("a.b", {}, ValueError, r"adapter name 'a\.b' must be non-empty, without '\.' and '/'"),
        ("", {}, ValueError, r"must be non-empty"),
    ],
)
def test_wrong_additions_attach_nothing(
    model: nn.Module, name: str, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    stir(add_adapter(model, "taken", rank=1).parameters())
    before = run(model, HOST)
    with pytest.raises(error, match=text):
        add_adapter(model, name, **{"rank": 1, **options})
    assert list(list_adapters(model)) == ["taken"]
    assert get_active_adapters(model) == {"taken": 1.0}
    assert torch.equal(run(model, HOST), before)


@every_family
def test_a_rank_too_large_names_the_place(model: nn.Module, base: Tensor, family: str) -> None:
    fields = [field.name for field in dataclasses.fields(FAMILIES[family].Config)]
    if "rank" not in fields:
        pytest.skip("has no rank")
    with pytest.raises(
        ValueError, match=r"^transformer_blocks\.0\.attn\.to_\w+, weight \(16, 16\): rank 17 exceeds min"
    ) as caught:
        add_adapter(model, "one", family, rank=17)
    assert "\n" not in str(caught.value)
    assert list_adapters(model) == {}
    assert not model._forward_pre_hooks
    assert torch.equal(run(model, HOST), base)


@pytest.mark.parametrize(
    ("thing", "error", "text"),
    [
        ("a pipeline", TypeError, r"expected a diffusers pipeline or a denoiser, got str"),
        (
            SimpleNamespace(components={"vae": nn.Linear(1, 1)}),
            TypeError,
            r"has none of the components unet, transformer",
        ),
        (nn.Linear(2, 2), ValueError, r"Linear has no attention processors to put adapters in"),
    ],
)
def test_what_has_no_denoiser_is_refused(thing: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        add_adapter(thing, "one")


def test_segments_of_a_path_are_matched_whole() -> None:
    paths = [f"{block}.{i}.attn{j}.to_q" for block in ("blocks", "single_blocks") for i in (0, 1, 10) for j in (1, 10)]
    paths += ["blocks.0.attn1.to_out.0", "blocks.0.attn1.to_out.10"]
    assert match_targets(paths, None) == paths
    assert match_targets(paths, ["attn1"]) == [path for path in paths if "attn10" not in path]
    assert match_targets(paths, ["blocks.1"]) == ["blocks.1.attn1.to_q", "blocks.1.attn10.to_q"]
    assert match_targets(paths, ["to_out.0"]) == ["blocks.0.attn1.to_out.0"]
    assert match_targets(paths, ["to_q", "blocks.0"]) == paths
    with pytest.raises(ValueError, match=r"unknown target 'attn' in target_modules, .*available: .*attn1"):
        match_targets(paths, ["attn"])
    with pytest.raises(ValueError, match=r"did you mean 'to_out\.10?'"):
        match_targets(paths, ["to_out.1"])


def test_targets_choose_where_adapters_act() -> None:
    model = build("flux")
    every = set(add_adapter(model, "all", rank=1).of("all"))
    chosen = add_adapter(model, "some", rank=1, target_modules=["transformer_blocks.0"]).of("some")
    assert set(chosen) == {path for path in every if path.startswith("transformer_blocks.0.")} != set()
    exact = add_adapter(model, "one", rank=1, target_modules=["single_transformer_blocks.0.attn.to_k"]).of("one")
    assert list(exact) == ["single_transformer_blocks.0.attn.to_k"]
    assert list_adapters(model)["one"].target_modules == ("single_transformer_blocks.0.attn.to_k",)
    single = add_adapter(model, "two", rank=1, target_modules="single_transformer_blocks.0.attn.to_k").of("two")
    assert list(single) == list(exact)
    assert list_adapters(model)["two"].target_modules == ("single_transformer_blocks.0.attn.to_k",)


def test_training_an_adapter_that_cannot_act_is_refused() -> None:
    model = build("lumina_next")
    add_adapter(model, "one", rank=1)
    with pytest.raises(
        RuntimeError, match=r"attn2: .*to_out\.0 outside .* leave it out by target_modules to_q to_k to_v"
    ):
        run(model, "lumina_next", grad=True)
    delete_adapters(model, "one")
    add_adapter(model, "one", rank=1, target_modules=["to_q", "to_k", "to_v"])
    run(model, "lumina_next", grad=True)


# ---- fuse ------------------------------------------------------------------------------------------------------------


def test_a_thousand_cycles_restore_every_bit() -> None:
    model = build(HOST).to(torch.bfloat16)
    for family in FAMILIES:
        adapter_set = add_adapter(model, family, family, target_modules=[PLACE], **small(family))
    stir(adapter_set.parameters())
    before = bits(model)
    for cycle in range(1000):
        set_adapters(model, list(FAMILIES), 0.001 * (cycle + 1))
        fuse_adapters(model)
        if cycle % 250 == 0:
            assert not same_bits(model, before)
        unfuse_adapters(model)
    assert same_bits(model, before)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fusing_rounds_once_from_fp32(family: str, dtype: torch.dtype) -> None:
    model = build(HOST).to(dtype)
    adapter_set = adapt(model, [family])
    wide = merge(build(HOST).to(dtype).float(), adapter_set)
    fuse_adapters(model)
    fused, exact = model.get_submodule(PLACE).weight, wide.get_submodule(PLACE).weight
    assert fused.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else 2**-8
    assert ((fused.float() - exact).abs() <= limit * exact.abs() + 1e-7).all()


def test_verbs_are_refused_while_fused(model: nn.Module, tmp_path: Path) -> None:
    two(model)
    file = save_adapter(model, "one", tmp_path / "one.safetensors")
    fuse_adapters(model)
    fused = run(model, HOST)
    remedy = r"while adapters are fused into the weights; call unfuse_adapters\(\) first"
    refused = {
        f"cannot add adapters {remedy}": [
            lambda: add_adapter(model, "three", rank=1),
            lambda: load_adapter(model, file, "three"),
        ],
        f"cannot delete adapters {remedy}": [lambda: delete_adapters(model, "one")],
        f"cannot change adapter weights {remedy}": [
            lambda: set_adapters(model, "one", 0.5),
            lambda: disable_adapters(model),
            lambda: enable_adapters(model),
        ],
        r"already fused; call unfuse_adapters\(\) first": [lambda: fuse_adapters(model)],
    }
    for text, calls in refused.items():
        for call in calls:
            with pytest.raises(RuntimeError, match=text):
                call()
    assert torch.equal(run(model, HOST), fused)
    assert list(list_adapters(model)) == ["one", "two"]


def test_what_is_read_while_fused_is_what_was_before(model: nn.Module, tmp_path: Path) -> None:
    adapt(model)

    def write(name: str) -> tuple[dict[str, Tensor], Any]:
        tensors, _ = read_safetensors(save_adapter(model, name, tmp_path / "own.safetensors"))
        report = export_lora(model, name, tmp_path / "lora.safetensors", rank=8)
        return tensors | read_safetensors(report.path)[0], report

    before = {name: write(name) for name in FAMILIES}
    fuse_adapters(model)
    for name in FAMILIES:
        tensors, report = write(name)
        assert report == before[name][1]
        assert all(torch.equal(value, before[name][0][key]) for key, value in tensors.items())


@pytest.mark.parametrize("verb", [fuse_adapters, unfuse_adapters])
def test_there_must_be_something_to_fuse(model: nn.Module, verb: Any) -> None:
    with pytest.raises(RuntimeError, match=r"no adapter"):
        verb(model)
    two(model)
    set_adapters(model, ["one", "two"], 0.0)
    with pytest.raises(RuntimeError, match=r"no adapter"):
        verb(model)
    set_adapters(model, "one")
    disable_adapters(model)
    with pytest.raises(RuntimeError, match=r"disabled; call enable_adapters\(\)|no adapters are fused"):
        verb(model)


@every_family
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_fused_weight_that_is_not_finite_is_refused(model: nn.Module, family: str, bad: float) -> None:
    model.to(torch.float16)
    adapter_set = adapt(model, [family], target_modules=[PLACE])
    before = bits(model)
    with torch.no_grad():
        for parameter in adapter_set.parameters():
            parameter.fill_(bad)
        weight = model.get_submodule(PLACE).weight.float()
        if bool(adapter_set.of(family)[PLACE].delta_weight(weight).half().isfinite().all()):
            pytest.skip("a rotation has no values that are too large")
    with pytest.raises(ValueError, match=rf"{PLACE}: the fused weight is not finite; nothing was changed"):
        fuse_adapters(model)
    assert same_bits(model, before)
    set_adapters(model, family, 0.5)  # not fused


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
