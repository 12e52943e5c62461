"""Adding adapters: what attaches nothing, and in which words; where they act."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_adapters import FAMILIES, add_adapter, delete_adapters, get_active_adapters, list_adapters
from diffusion_adapters.attach import match_targets
from tests.hosts import HOST, build, run, stir

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def base() -> Tensor:
    return run(build(HOST), HOST)


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
