"""Hybrids: domains with dials that act in every way that a weight does, in one file."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from diffusion_adapters import (
    FAMILIES,
    AdapterWeight,
    add_adapter,
    delete_adapters,
    get_active_adapters,
    inspect_adapter,
    load_adapter,
    save_adapter,
    set_adapters,
    use_adapters,
)
from tests.denoisers import build, run
from tests.files import rewrite
from tests.hosts import TOLERANCE, distance, small, stir

HOST = "unet_sd15"
PARTS = {name: {"family": f, **small(f)} for name, f in (("sketch", "lora"), ("night", "loldu"), ("snow", "tlora"))}
LOW = {name: PARTS[name] for name in ("sketch", "night")}
OFF = dict.fromkeys(PARTS, 0.0)


def hybrid(parts=PARTS, model=None, **options):
    model = build(HOST) if model is None else model
    torch.manual_seed(0)
    adapters = add_adapter(model, "mine", "hybrid", parts=parts, **options)
    stir(adapters.parameters())
    return model, adapters


def at(model, **dials):
    set_adapters(model, "mine", domain_weights=dials)
    return run(model, HOST)


@pytest.fixture(scope="module")
def trained():
    return hybrid()


def test_dials_are_the_weights_of_the_parts(trained):
    model, adapters = trained
    base = run(build(HOST), HOST)
    assert torch.equal(at(model, **OFF), base)
    dials = {"sketch": 0.5, "night": -1.0, "snow": 0.7}
    bare = build(HOST)
    with torch.no_grad():
        for path, adapter in adapters.of("mine").items():
            weight, c = bare.get_submodule(path).weight, adapter.coefficients
            parts = zip(c, PARTS, strict=True)
            weight += sum(c * dials[name] * adapter.parts[name].delta_weight(weight) for c, name in parts)
    assert distance(at(model, **dials), run(bare, HOST), base) < TOLERANCE
    whole = at(model)
    set_adapters(model, "mine")
    assert torch.equal(run(model, HOST), whole)  # all ones
    assert torch.equal(at(model, **dict.fromkeys(PARTS, 1)), whole)
    assert get_active_adapters(model)["mine"].domains == dict.fromkeys(PARTS, 1)


def test_one_dial_alone_is_the_part_times_its_coefficient(trained):
    model, adapters = trained
    bare = build(HOST)
    own = add_adapter(bare, "sketch", **PARTS["sketch"])
    for path, adapter in own.of("sketch").items():
        found = adapters.of("mine")[path]
        adapter.load_state_dict(found.parts["sketch"].state_dict())
        with torch.no_grad():
            adapter.B *= found.coefficients[0]
    assert distance(at(model, **{**OFF, "sketch": 1.0}), run(bare, HOST), run(build(HOST), HOST)) < TOLERANCE


def test_dials_go_with_scopes_samples_bands_other_adapters_and_calls(trained):
    model, _ = copy.deepcopy(trained)
    half = {"sketch": 0.5, "night": 0.0}
    for weight in ({"scopes": {"attn2": 0.0}}, {"samples": (0.3, 0.3)}, {"bands": (1.0, 0.2)}):
        set_adapters(model, "mine", AdapterWeight(0.5, **weight), domain_weights=half)
        found = run(model, HOST)
        dials = {name: dial / 2 for name, dial in {**half, "snow": 1.0}.items()}
        set_adapters(model, "mine", AdapterWeight(domains=dials, **weight))
        assert distance(run(model, HOST), found, run(build(HOST), HOST)) < TOLERANCE
    add_adapter(model, "other", "lora", rank=2)
    with use_adapters(model, ["other", "mine"], domain_weights={"mine": half}):
        assert get_active_adapters(model)["mine"].domains["sketch"] == 0.5
    with pytest.raises(ValueError, match="by adapter name for 2 adapters"):
        set_adapters(model, ["other", "mine"], domain_weights=half)


def test_a_copy_has_dials_of_its_own(trained):
    model, _ = trained
    twin = copy.deepcopy(model)
    full = at(model)
    assert torch.equal(at(twin), full)
    assert not torch.equal(at(twin, night=0), full)
    assert torch.equal(run(model, HOST), full)


def test_unknown_dials_are_refused_and_nothing_changes(trained):
    model, _ = trained
    before = at(model, night=0.5)
    add_adapter(model, "plain", "lora", rank=2)
    set_adapters(model, "mine", domain_weights={"night": 0.5})
    for name, dials, message in (
        ("mine", {"skech": 1.0}, "unknown domain 'skech' of adapter 'mine', did you mean 'sketch'"),
        ("mine", {"night": float("inf")}, "finite"),
        ("plain", {"night": 1.0}, "adapter 'plain' has no domains"),
        ("mine", {"plain": {"night": 1.0}}, "names adapter 'plain', which is not in names"),
    ):
        with pytest.raises(ValueError, match=message):
            set_adapters(model, name, domain_weights=dials)
    with pytest.raises(TypeError, match="domain_weights must be a mapping"):
        set_adapters(model, "mine", domain_weights=0.5)
    with pytest.raises(ValueError, match="give them once"):
        set_adapters(model, "mine", AdapterWeight(domains={"night": 1}), domain_weights={"night": 1})
    assert torch.equal(run(model, HOST), before)
    delete_adapters(model, "plain")


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({}, ValueError, "parts is empty"),
        ({"a.b": {"family": "lora"}}, ValueError, "'a.b' cannot be a name"),
        ({"train": {"family": "lora"}}, ValueError, "'train' cannot be a name"),
        ({"a": {"family": "lorra"}}, ValueError, "'a': unknown adapter family 'lorra', did you mean 'lora'"),
        ({"a": {"family": "lora", "rnk": 2}}, ValueError, "'a': unknown option 'rnk'"),
        ({"a": {"family": "lora", "rank": "2"}}, TypeError, "'a': rank must be int"),
        ({"a": {"rank": 2}}, TypeError, "must be {\"family\""),
        ({"a": {"family": "hybrid"}}, ValueError, "'a' is a hybrid, which has parts itself"),
        ({"a": {"family": "lora", "rank": 500}}, ValueError, "a: rank 500 exceeds"),
    ],
)  # fmt: skip
def test_parts_that_cannot_be(parts, error, message):
    model = build(HOST)
    with pytest.raises(error, match=message):
        add_adapter(model, "mine", "hybrid", parts=parts)
    assert not model._forward_pre_hooks


def test_parts_of_a_kind_have_one_basis_on_every_device_and_in_the_file():
    weight = torch.randn(8, 12)
    made = FAMILIES["hybrid"](weight, FAMILIES["hybrid"].Config(parts=dict.fromkeys(("a", "b"), PARTS["night"])))
    for adapter in (made, copy.deepcopy(made), made.to(torch.float64)):
        assert adapter.parts["a"].L is adapter.parts["b"].L
        assert adapter.parts["a"].d is not adapter.parts["b"].d
    assert [name for name in made.state_dict() if "piv" in name] == ["parts.a.piv"]
    own = {**made.float().state_dict(), "parts.b.piv": made.parts["a"].piv.flip(0), "parts.b.D": made.parts["a"].D}
    with pytest.raises(ValueError, match="this is not the base"):
        type(made).from_tensors(weight, made.config, own)
    two = FAMILIES["hybrid"](weight, FAMILIES["hybrid"].Config())
    assert not torch.equal(two.parts["first"].A, two.parts["second"].A)


def test_gradients_reach_what_is_dialed_alone_and_checkpointing_agrees(trained):
    _, adapters = copy.deepcopy(trained)
    adapters.set_weights({"mine": AdapterWeight(domains={**OFF, "night": 1.0})})
    path, adapter = next(iter(adapters.of("mine").items()))
    projection, x = adapters.projections()[path], torch.randn(1, 3, 8, requires_grad=True)
    found = []
    for call in (projection, lambda v: checkpoint(projection, v, use_reentrant=False)):
        adapters.zero_grad()
        call(x).square().sum().backward()
        found.append(adapter.parts["night"].d.grad.clone())
        assert adapter.coefficients.grad.tolist()[0] == adapter.coefficients.grad.tolist()[2] == 0
        assert adapter.parts["sketch"].A.grad is None
    assert found[0].any()
    assert torch.equal(*found)


def test_a_fresh_process_has_the_same_hybrid(trained, tmp_path):
    model, _ = trained
    path = save_adapter(model, "mine", tmp_path / "mine.safetensors")
    torch.save(at(model, night=0.5), tmp_path / "wanted.pt")
    code = f"""
import torch
from tests.test_hybrid import HOST, build, load_adapter, run, AdapterWeight
model = build(HOST)
load_adapter(model, r"{path}", "x", adapter_weight=AdapterWeight(domains={{"night": 0.5}}))
assert torch.equal(run(model, HOST), torch.load(r"{tmp_path / "wanted.pt"}"))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    report = inspect_adapter(path, model)
    assert (list(report.domains), report.coverage) == (list(PARTS), 1)
    assert report.domains["night"]["family"] == "loldu"
    low, high = report.domains["night"]["coefficients"]
    assert low < 1 < high
    assert "domain         night: family=loldu" in str(report)
    with pytest.raises(ValueError, match="unknown domain 'nite'"):
        load_adapter(build(HOST), path, adapter_weight=AdapterWeight(domains={"nite": 0.5}))


def test_hostile_files_are_refused(trained, tmp_path):
    model, _ = trained
    path = save_adapter(model, "mine", tmp_path / "mine.safetensors")
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q:"
    for change, message in (
        (lambda t, d: t.pop(f"{key}coefficients"), "missing coefficients"),
        (lambda t, d: t.update({f"{key}coefficients": torch.ones(4)}), "coefficients has shape"),
        (lambda t, d: t.pop(f"{key}parts.night.piv"), "night: missing piv"),
        (lambda t, d: t.update({f"{key}parts.fog.A": torch.ones(4)}), "unexpected parts.fog.A"),
        (lambda t, d: d["config"].update(parts={"a": 1}), "damaged header"),
        (lambda t, d: d["config"]["parts"].update({"a/b": {"family": "lora"}}), "cannot be a name"),
    ):
        bad = Path(shutil.copy(path, tmp_path / "bad.safetensors"))
        rewrite(bad, change)
        with pytest.raises(ValueError, match=message):
            load_adapter(build(HOST), bad)
