"""What adapters hold: nothing once they are gone, little while they are idle; a shelf keeps to its limits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from diffusion_adapters import (
    FAMILIES,
    AdapterShelf,
    delete_adapters,
    get_active_adapters,
    list_adapters,
    load_adapter,
    save_adapter,
    set_adapter_device,
    set_adapters,
)
from diffusion_adapters.shelf import adapter_bytes
from tests.hosts import HOSTS, adapt, build, pipeline, run, sample
from train.benchmarks.measure import live_tensors

HOST = "flux"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each family, under its name."""
    folder = tmp_path_factory.mktemp("files")
    model = build(HOST)
    adapt(model)
    return {family: save_adapter(model, family, folder / f"{family}.safetensors") for family in FAMILIES}


def test_fifty_loads_and_unloads_leave_memory_flat(files: dict[str, Path]) -> None:
    """Tensors and bytes to the last one; the process as far as an allocator lets it."""
    model, process = build(HOST), psutil.Process()
    base = run(model, HOST)

    def cycle() -> None:
        for family in FAMILIES:
            load_adapter(model, files[family], family)
        run(model, HOST)
        set_adapters(model, list(FAMILIES)[:1], 0.5)
        run(model, HOST)
        delete_adapters(model, list(FAMILIES))

    for _ in range(3):
        cycle()
    before, resident = live_tensors(), process.memory_info().rss
    for _ in range(50):
        cycle()
    assert live_tensors() == before
    assert process.memory_info().rss - resident < 8 * 2**20
    assert torch.equal(run(model, HOST), base)


@pytest.mark.parametrize("host", HOSTS)
def test_a_deleted_adapter_is_gone(host: str) -> None:
    """Whatever it was told to do in between, nothing keeps it."""
    model: Any = build(host)
    run(model, host)
    before = live_tensors()
    adapt(model)
    run(model, host)
    model.set_attn_processor(dict(model.attn_processors))
    run(model, host)
    run(model, host, grad=True)
    delete_adapters(model, list(FAMILIES))
    assert live_tensors() == before


def test_idle_adapters_hold_their_own_numbers_alone(files: dict[str, Path]) -> None:
    """What is prepared for a forward goes with the weight."""
    model = build(HOST)
    run(model, HOST)
    before = live_tensors()
    for family in FAMILIES:
        load_adapter(model, files[family], family)
    own = sum(adapter_bytes(model, family) for family in FAMILIES)
    run(model, HOST)
    assert live_tensors().bytes - before.bytes > own
    set_adapters(model, [])
    gc.collect()
    assert live_tensors().bytes - before.bytes == own


# ---- a shelf ---------------------------------------------------------------------------------------------------------


def test_a_shelf_loads_what_is_asked_for(files: dict[str, Path]) -> None:
    model, plain = build(HOST), build(HOST)
    shelf = AdapterShelf(model, files["lora"].parent, count=2)
    assert set(shelf) == set(FAMILIES)
    assert "lora" in shelf
    assert list_adapters(model) == {}
    first, second, third = list(FAMILIES)[:3]
    shelf.set_adapters([first, second], [0.5, 1.0])
    load_adapter(plain, files[first], first)
    load_adapter(plain, files[second], second)
    set_adapters(plain, [first, second], [0.5, 1.0])
    assert torch.equal(run(model, HOST), run(plain, HOST))
    shelf.set_adapters(third)
    assert shelf.loaded == [second, third]
    assert list(list_adapters(model)) == [second, third]
    shelf.set_adapters([])
    shelf.set_adapters(second)
    assert shelf.loaded == [third, second]
    shelf.set_adapters(first)
    assert shelf.loaded == [second, first]
    assert get_active_adapters(model) == {first: 1.0}


def test_active_adapters_stay_beyond_the_limit(files: dict[str, Path]) -> None:
    model = build(HOST)
    shelf = AdapterShelf(model, files, count=1)
    shelf.set_adapters(list(FAMILIES))
    assert shelf.loaded == list(FAMILIES)
    shelf.set_adapters([])
    assert shelf.loaded == [list(FAMILIES)[-1]]
    shelf.count = 0
    assert shelf.tidy() == [list(FAMILIES)[-1]]
    assert list_adapters(model) == {}


def test_bytes_are_a_limit_too(files: dict[str, Path]) -> None:
    model = build(HOST)
    sizes = {}
    for family in FAMILIES:
        load_adapter(model, files[family], family)
        sizes[family] = adapter_bytes(model, family)
        delete_adapters(model, family)
    first, second, third = list(FAMILIES)[:3]
    shelf = AdapterShelf(model, files, max_bytes=sizes[second] + sizes[third])
    for family in (first, second, third):
        shelf.set_adapters(family)
    assert shelf.loaded == [second, third]
    shelf.max_bytes = 0
    assert shelf.tidy() == [second]


def test_what_was_loaded_otherwise_is_let_be(files: dict[str, Path]) -> None:
    model = build(HOST)
    load_adapter(model, files["lora"], "own")
    shelf = AdapterShelf(model, files, count=0)
    shelf.set_adapters(["own", "lora"])
    shelf.set_adapters([])
    assert list(list_adapters(model)) == ["own"]
    shelf.set_adapters("lora")
    delete_adapters(model, "lora")
    assert shelf.loaded == []


def test_a_failure_leaves_all_as_it_was(files: dict[str, Path], tmp_path: Path) -> None:
    model = build(HOST)
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    shelf = AdapterShelf(model, {**files, "broken": tmp_path / "broken.safetensors"})
    shelf.set_adapters("lora", 0.5)
    wanted, names = run(model, HOST), list(FAMILIES)
    faults: list[tuple[Callable[[], None], str]] = [
        (lambda: shelf.set_adapters([*names, "broken"]), "broken"),
        (lambda: shelf.set_adapters(names, float("nan")), "finite"),
        (lambda: shelf.set_adapters(["lroa"]), r"unknown adapter 'lroa'.*lora"),
    ]
    for fault, text in faults:
        with pytest.raises(ValueError, match=text):
            fault()
        assert get_active_adapters(model) == {"lora": 0.5}
        assert list(list_adapters(model)) == shelf.loaded == ["lora"]
        assert torch.equal(run(model, HOST), wanted)
    with pytest.raises(FileNotFoundError, match="no folder"):
        AdapterShelf(model, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="negative"):
        AdapterShelf(model, files, count=-1)


def test_a_pipeline_has_a_shelf(tmp_path: Path) -> None:
    pipe = pipeline()
    base = sample(pipe)
    adapt(pipe)
    for family in FAMILIES:
        save_adapter(pipe, family, tmp_path / f"{family}.safetensors")
    delete_adapters(pipe, list(FAMILIES))
    shelf = AdapterShelf(pipe, tmp_path, count=1)
    pictures = []
    for family in FAMILIES:
        shelf.set_adapters(family)
        pictures.append(sample(pipe))
    assert not any(torch.equal(picture, other) for picture, other in zip(pictures, [base, *pictures], strict=False))
    shelf.set_adapters([])
    assert torch.equal(sample(pipe), base)


def test_numbers_can_be_moved(files: dict[str, Path]) -> None:
    model = build(HOST)
    load_adapter(model, files["lora"], "one")
    wanted = run(model, HOST)
    set_adapter_device(model, "one", "cpu")
    assert torch.equal(run(model, HOST), wanted)
    with pytest.raises(ValueError, match="unknown adapter 'two'"):
        set_adapter_device(model, ["one", "two"], "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_idle_adapters_rest_on_the_cpu(files: dict[str, Path], family: str) -> None:
    model = build(HOST).cuda()
    load_adapter(model, files[family], "one")
    with torch.device("cuda"):
        wanted = run(model, HOST)
        set_adapters(model, [])
        held = torch.cuda.memory_allocated()
        set_adapter_device(model, "one", "cpu")
        assert torch.cuda.memory_allocated() < held
        set_adapters(model, "one")
        torch.testing.assert_close(run(model, HOST), wanted)
