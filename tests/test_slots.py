"""Slots: whatever adapters come and go, a compiled denoiser is compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusion_adapters import (
    FAMILIES,
    AdapterWeight,
    add_adapter,
    coverage,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    get_active_adapters,
    load_adapter,
    release_slots,
    reserve_slots,
    save_adapter,
    set_adapters,
)
from tests.hosts import HOSTS, TOLERANCE, adapt, build, distance, run, small, stir

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """An adapter file of every family for every host, of different ranks."""
    folder, found = tmp_path_factory.mktemp("slots"), {}
    for host in HOSTS:
        found[host] = {}
        for i, family in enumerate(FAMILIES):
            model = build(host)
            options = {**small(family), **({"rank": 1 + i % 2} if "rank" in small(family) else {})}
            stir(add_adapter(model, family, family, **options).parameters(), seed=i)
            found[host][family] = save_adapter(model, family, folder / f"{host}-{family}.safetensors")
    return found


@pytest.mark.parametrize("host", ["flux", *(pytest.param(h, marks=pytest.mark.slow) for h in HOSTS if h != "flux")])
def test_adapters_of_every_family_come_and_go_without_recompiling(host: str, files) -> None:
    model, plain = build(host), build(host)
    reserve_slots(model, rank=16, adapters=3, dense=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    base = run(compiled, host)
    assert torch.equal(base, run(plain, host))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i, (family, path) in enumerate(files[host].items()):
            for one in (model, plain):
                load_adapter(one, path, family, adapter_weight=0.5)
                set_adapters(one, [*get_active_adapters(one)][-2:], 0.3 + 0.1 * i)
            assert distance(run(compiled, host), run(plain, host), base) < TOLERANCE
            for one in (model, plain):
                set_adapters(one, family, AdapterWeight(0.7, scopes={"to_q": 0.5}))
            assert distance(run(compiled, host), run(plain, host), base) < TOLERANCE
        for one in (model, plain):
            delete_adapters(one, next(iter(files[host])))
            set_adapters(one, list(files[host])[1:3], [0.5, -0.5])
        assert distance(run(compiled, host), run(plain, host), base) < TOLERANCE
        disable_adapters(model)
        assert torch.equal(run(compiled, host), base)
        enable_adapters(model)
        assert distance(run(compiled, host), run(plain, host), base) < TOLERANCE
        delete_adapters(model, list(files[host])[1:])
        assert torch.equal(run(compiled, host), base)


def test_release_gives_back_what_was(files) -> None:
    model = build("flux")
    for family in ("lora", "wara"):
        load_adapter(model, files["flux"][family], family)
    before = run(model, "flux")
    reserve_slots(model, rank=64)
    torch.testing.assert_close(run(model, "flux"), before, rtol=1e-4, atol=1e-5)
    assert all(coverage(model).values())
    release_slots(model)
    assert torch.equal(run(model, "flux"), before)


def test_what_does_not_fit_changes_nothing(files) -> None:
    model = build("flux")
    load_adapter(model, files["flux"]["lora"], "lora")
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1, got 0"):
        reserve_slots(model, rank=0)
    before = run(model, "flux")
    reserve_slots(model, rank=2, adapters=2)
    same = run(model, "flux")
    with pytest.raises(ValueError, match=r"'t' is not low rank; call reserve_slots\(dense=True\)"):
        load_adapter(model, files["flux"]["transformed_lora"], "t")
    for weight in (AdapterWeight(samples=[1.0, 0.5]), AdapterWeight(bands=(1, 0))):
        with pytest.raises(ValueError, match="slots take numbers and scopes"):
            set_adapters(model, "lora", weight)
    with pytest.raises(ValueError, match=r"have rank \d+ together, and the slots 2"):
        load_adapter(model, files["flux"]["wara"], "w")
    with pytest.raises(ValueError, match="not trained"):
        add_adapter(model, "new", "lora", rank=1)
    assert list(get_active_adapters(model)) == ["lora"]
    assert torch.equal(run(model, "flux"), same)
    torch.testing.assert_close(same, before, rtol=1e-4, atol=1e-5)


def test_a_larger_rank_is_reserved_anew() -> None:
    model = build("flux")
    adapt(model, ["lora"])
    with pytest.raises(ValueError, match="not trained"):
        reserve_slots(model, rank=8)
