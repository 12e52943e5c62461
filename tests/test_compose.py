"""Hybrids of adapters that exist; hybrids in exports, merges, slots, compiled forwards, pipelines and the shell."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion_adapters import (
    AdapterWeight,
    add_adapter,
    add_text_adapter,
    compose_adapters,
    delete_adapters,
    export_lora,
    fuse_adapters,
    get_active_adapters,
    list_adapters,
    load_adapter,
    merge_adapters,
    release_slots,
    reserve_slots,
    save_adapter,
    set_adapters,
    unfuse_adapters,
)
from diffusion_adapters.attach import adapter_sets
from diffusion_adapters.cli import main
from tests.denoisers import build, run
from tests.hosts import TOLERANCE, distance, pipeline, pipeline_folder, small, stir
from tests.test_hybrid import HOST, LOW, OFF, at, hybrid

SINGLE = {"a": ("loldu", None), "b": ("loldu", "attn2"), "c": ("tlora", ["to_q", "to_k"]), "d": ("dora", None)}
DOMAINS = {"sketch": "a", "night": "b", "snow": "c", "fog": "d"}


@pytest.fixture
def singles():
    model = build(HOST)
    torch.manual_seed(0)
    for name, (family, targets) in SINGLE.items():
        adapters = add_adapter(model, name, family, target_modules=targets, **small(family))
    stir(adapters.parameters())
    return model


def test_the_composed_is_the_sum_and_trains_its_mixing_alone(singles, tmp_path):
    base = run(build(HOST), HOST)
    set_adapters(singles, list(SINGLE))
    wanted = run(singles, HOST)
    compose_adapters(singles, "mine", DOMAINS)
    assert list(get_active_adapters(singles)) == ["mine"]
    assert distance(run(singles, HOST), wanted, base) < TOLERANCE
    adapters = adapter_sets(singles)["unet"]
    for path, adapter in adapters.of("mine").items():
        weight = adapters.projections()[path].weight
        own = [adapters.of(name)[path] for name in SINGLE if path in adapters.of(name)]
        assert torch.allclose(adapter.delta_weight(weight), sum(a.delta_weight(weight) for a in own), atol=1e-5)
        assert list(adapter.domains) == [d for d, name in DOMAINS.items() if path in adapters.of(name)]
        assert [name for name, value in adapter.named_parameters() if value.requires_grad] == ["coefficients"]
        if "night" in adapter.domains:
            assert adapter.parts["night"].L is adapter.parts["sketch"].L
    path, adapter = next(iter(adapters.of("mine").items()))
    adapters.projections()[path](torch.randn(3, adapter.in_features)).square().sum().backward()
    assert adapter.coefficients.grad.all()
    path = save_adapter(singles, "mine", tmp_path / "mine.safetensors")
    other = build(HOST)
    load_adapter(other, path, "mine")
    assert torch.equal(run(other, HOST), run(singles, HOST))
    for domain, name in DOMAINS.items():
        alone = at(singles, **{**dict.fromkeys(DOMAINS, 0.0), domain: 1.0})
        set_adapters(singles, name)
        assert distance(alone, run(singles, HOST), base) < TOLERANCE
    stir(next(iter(adapters.of("d").values())).parameters())  # the parts are copies
    set_adapters(singles, "mine")
    assert torch.equal(run(singles, HOST), run(other, HOST))


def test_what_cannot_be_composed_is_refused(singles):
    set_adapters(singles, ["a", "b"])
    compose_adapters(singles, "two", {"sketch": "a", "night": "b"}, trainable=False)
    assert not any(v.requires_grad for a in adapter_sets(singles)["unet"].of("two").values() for v in a.parameters())
    for name, domains, message in (
        ("x", {"sketch": "a"}, "at least two"),
        ("x", {"sketch": "a", "night": "q"}, "unknown adapter 'q'"),
        ("x", {"sketch": "a", "night": "two"}, "'night' is a hybrid"),
        ("x", {"sketch": "a", "ni.ght": "b"}, "'ni.ght' cannot be a name"),
        ("two", {"sketch": "a", "night": "b"}, "already in use"),
    ):
        with pytest.raises(ValueError, match=message):
            compose_adapters(singles, name, domains)
    with pytest.raises(TypeError, match="parts: 1 cannot be a name here: it is int, not str"):
        compose_adapters(singles, "x", {1: "a", 2: "b"})
    with pytest.raises(TypeError, match="3 is no name of an adapter: it is int, not str"):
        compose_adapters(singles, "x", {"sketch": "a", "night": 3})
    assert set(list_adapters(singles)) == {*SINGLE, "two"}
    pipe = pipeline()
    for name in "ab":
        add_adapter(pipe, name, rank=2)
    add_text_adapter(pipe, "b", rank=2)
    with pytest.raises(ValueError, match="text encoders"):
        compose_adapters(pipe, "x", {"sketch": "a", "night": "b"})


def test_export_merge_and_fuse_at_given_dials(tmp_path):
    model, _ = hybrid(LOW)
    dials = {"sketch": 0.5, "night": -1.0}
    base, wanted = run(build(HOST), HOST), at(model, **dials)
    report = export_lora(model, "mine", tmp_path / "lora.safetensors", adapter_weights=AdapterWeight(domains=dials))
    assert report.exact
    assert report.rank == 4
    other = build(HOST)
    load_adapter(other, report.path)
    assert distance(run(other, HOST), wanted, base) < TOLERANCE
    assert export_lora(model, None, tmp_path / "one.safetensors").rank == 4  # at the dials that act
    set_adapters(model, "mine", domain_weights={"night": 0})
    assert export_lora(model, None, tmp_path / "one.safetensors").rank == 2
    with pytest.raises(ValueError, match="every weight of mine is 0"):
        export_lora(model, "mine", tmp_path / "off.safetensors", adapter_weights=AdapterWeight(domains=OFF_LOW))
    merge_adapters(model, {"mine": AdapterWeight(domains=dials)}, "merged")
    set_adapters(model, "merged")
    assert distance(run(model, HOST), wanted, base) < TOLERANCE
    at(model, **dials)
    fuse_adapters(model)
    assert distance(run(model, HOST), wanted, base) < TOLERANCE
    unfuse_adapters(model)
    assert torch.equal(run(model, HOST), wanted)


OFF_LOW = {"sketch": 0.0, "night": 0.0}


def test_slots_hold_domains_at_their_dials():
    model, adapters = hybrid(LOW)
    adapters.requires_grad_(False)
    base, wanted = run(build(HOST), HOST), [at(model, **d) for d in ({}, {"night": 0.3}, {"night": 0.0})]
    with pytest.raises(ValueError, match="2 adapters are active and slots hold 1"):  # one for each domain
        reserve_slots(model, rank=6, adapters=1)
    reserve_slots(model, rank=6, adapters=2)
    for dials, expected in zip(({}, {"night": 0.3}, {"night": 0.0}), wanted, strict=True):
        assert distance(at(model, **dials), expected, base) < TOLERANCE
    release_slots(model)
    model, _ = hybrid()
    with pytest.raises(ValueError, match="is not low rank"):
        reserve_slots(model)


def test_dials_recompile_nothing():
    model, adapters = hybrid()
    adapters.requires_grad_(False)
    base = run(build(HOST), HOST)
    wanted = {dials: at(model, **dict(dials)) for dials in ((), (("night", 0.3),), (("night", 0.0), ("snow", 0.0)))}
    at(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    run(compiled, HOST)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for dials, expected in wanted.items():
            set_adapters(model, "mine", domain_weights=dict(dials))
            assert distance(run(compiled, HOST), expected, base) < TOLERANCE
        set_adapters(model, "mine", domain_weights=OFF)
        assert torch.equal(run(compiled, HOST), base)


def test_masks_schedules_and_calls_of_a_pipeline():
    pipe = pipeline()
    hybrid(LOW, pipe.unet)

    def draw(**weight):
        set_adapters(pipe, "mine", AdapterWeight(**weight))
        settings = {"num_inference_steps": 2, "output_type": "np", "generator": torch.manual_seed(0)}
        return torch.from_numpy(pipe("a cat", height=64, width=64, **settings).images)

    night = {"sketch": 0.0}
    plain, base = draw(domains=night), draw(domains=OFF_LOW)
    for weight in ({"mask": torch.ones(2, 2)}, {"start": 0.0, "schedule": {0.0: 1.0, 1.0: 1.0}}):
        assert distance(draw(domains=night, **weight), plain, base) < 1e-3
        assert torch.equal(draw(domains=OFF_LOW, **weight), base)
    assert not torch.equal(draw(domains=night, start=0.5), plain)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = str(pipeline_folder())
    pipe = pipeline()
    for name in ("a", "b"):
        stir(add_adapter(pipe, name, rank=2).parameters())
        save_adapter(pipe, name, f"{name}.safetensors")
    compose = ["compose", "sketch=a.safetensors", "night=b.safetensors", "--base", base, "--output", "mine.safetensors"]
    assert main(compose) == 0
    assert "domains sketch, night" in capsys.readouterr().out
    blend = ["mine.safetensors:0.5", "--base", base, "--domain", "night=0"]
    assert main(["export", *blend, "--output", "lora.safetensors"]) == 0
    assert "rank 2, exact" in capsys.readouterr().out
    half = load_file("lora.safetensors")
    assert main(["export", "a.safetensors:0.5", "--base", base, "--output", "half.safetensors"]) == 0
    for key, value in load_file("half.safetensors").items():
        assert torch.allclose(half[key], value)
    draw = ["generate", "--prompt", "a cat", "--base", base, "--steps", "1", "--adapter", "mine.safetensors"]
    assert main([*draw, "--domain", "sketch=0.2", "--domain", "night=1", "--output", "cat.png"]) == 0
    assert Image.open("cat.png").size
    assert main(["merge", *blend, "--output", "merged.safetensors"]) == 0
    assert main(["bake", *blend, "--output", "baked"]) == 0
    assert main(["inspect", "mine.safetensors"]) == 0
    assert "domain         night: family=lora" in capsys.readouterr().out
    for wrong, message in (
        ("nite=1", "did you mean 'night'"),
        ("night", "must be DOMAIN=WEIGHT"),
        ("night=x", "number"),
    ):
        assert main([*draw, "--domain", wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["compose", "sketch=a.safetensors", "--base", base]) == 2
    assert "at least two" in capsys.readouterr().err
    delete_adapters(pipe, ["a", "b"])
