"""The adapter file: what stands in it, that it comes back whole, and that anything else is refused with a reason."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from diffusion_adapters import (
    FAMILIES,
    add_adapter,
    get_active_adapters,
    list_adapters,
    load_adapter,
    save_adapter,
    set_adapters,
)
from diffusion_adapters.file import FORMAT, FORMAT_VERSION, read_adapter
from diffusion_adapters.safe import read_safetensors, write_safetensors
from tests.hosts import build, pipeline, run, sample, small, stir

HOST = "flux"
PLACE = "transformer_blocks.0.attn.to_q"
ROOT = Path(__file__).parents[1]

every_family = pytest.mark.parametrize("family", FAMILIES)


def saved(folder: Path, family: str = "lora", host: str = HOST, **settings: Any) -> Path:
    model = build(host)
    stir(add_adapter(model, "one", family, **small(family)).parameters())
    return save_adapter(model, "one", folder / f"{family}.safetensors", **settings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(tmp_path)


@pytest.fixture
def model() -> nn.Module:
    return build(HOST)


def parts(file: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """Tensors, header entries, and our own entry decoded."""
    tensors, metadata = read_safetensors(file)
    return tensors, metadata, json.loads(metadata[FORMAT])


def rewrite(file: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    """The file after `change` of its tensors and of our header entry."""
    tensors, metadata, document = parts(file)
    change(tensors, document)
    safetensors.torch.save_file(tensors, file, {**metadata, FORMAT: json.dumps(document)})
    return file


def assert_refused(model: nn.Module, file: Path, text: str, error: type[Exception] = ValueError) -> None:
    """Loading fails in one line that names the file, and the model is as it was."""
    before = run(model, HOST)
    names = list(list_adapters(model))
    with pytest.raises(error, match=text) as caught:
        load_adapter(model, file, "new")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(list_adapters(model)) == names
    assert bool(model._forward_pre_hooks) == bool(names)
    assert torch.equal(run(model, HOST), before)


# ---- what stands in it -----------------------------------------------------------------------------------------------


@every_family
def test_header_says_everything(tmp_path: Path, family: str) -> None:
    pipe = pipeline()
    add_adapter(pipe, "one", family, target_modules=["attn2"], **small(family))
    path = save_adapter(
        pipe, "one", tmp_path / "sub" / "one.safetensors", trigger="a sks cat", training={"steps": 7, "resolution": 16}
    )
    with safetensors.safe_open(path, "pt") as stream:
        metadata, keys = stream.metadata(), list(stream.keys())
    document = json.loads(metadata[FORMAT])
    config = FAMILIES[family].Config(**small(family)).as_dict()
    (base,) = document["base"].values()
    assert document["format"] == "diffusion-adapters"
    assert document["format_version"] == FORMAT_VERSION == 1
    assert document["family"] == family
    assert document["config"] == json.loads(json.dumps(config))
    assert document["target_modules"] == ["attn2"]
    assert list(document["base"]) == ["unet"]
    assert base["class"] == "UNet2DConditionModel"
    assert re.fullmatch(r"[0-9a-f]{16}", base["fingerprint"])
    assert base["name"]
    assert os.sep not in base["name"]  # a folder of the machine it was trained on is nobody's business
    assert document["trigger"] == "a sks cat"
    assert document["training"] == {"steps": 7, "resolution": 16}
    assert document["created_by"].startswith("diffusion-adapters ")
    assert metadata["modelspec.sai_model_spec"]
    assert metadata["modelspec.title"] == "one"
    assert metadata["modelspec.trigger_phrase"] == "a sks cat"
    assert metadata["modelspec.resolution"] == "16"
    assert family in metadata["modelspec.architecture"]
    assert all(key.startswith("unet.") and ".attn2." in key for key in keys)
    info = read_adapter(path).info
    assert (info.family, info.trigger, info.target_modules) == (family, "a sks cat", ("attn2",))
    assert info.config == FAMILIES[family].Config(**small(family))
    assert info.training == {"steps": 7, "resolution": 16}


def test_settings_survive_loading_and_saving_again(file: Path, model: nn.Module, tmp_path: Path) -> None:
    first = saved(tmp_path, trigger="a sks cat", training={"steps": 7})
    load_adapter(model, first, "one")
    again = save_adapter(model, "one", tmp_path / "again.safetensors")
    tensors, _, document = parts(first)
    tensors_again, _, document_again = parts(again)
    assert document_again == document
    assert list(tensors_again) == list(tensors)
    assert all(torch.equal(tensors_again[key], tensors[key]) for key in tensors)


def test_name_is_the_stem_unless_given(tmp_path: Path, model: nn.Module) -> None:
    path = saved(tmp_path).rename(tmp_path / "my.cat.safetensors")
    assert load_adapter(model, path) == "my_cat"
    assert load_adapter(model, path, "other") == "other"
    assert_refused_name = pytest.raises(ValueError, match="adapter name 'my_cat' is already in use")
    with assert_refused_name:
        load_adapter(model, path)
    assert list(list_adapters(model)) == ["my_cat", "other"]


def test_loading_adds_to_what_is_active(file: Path, model: nn.Module) -> None:
    load_adapter(model, file, "one", adapter_weight=0.5)
    load_adapter(model, file, "two")
    assert get_active_adapters(model) == {"one": 0.5, "two": 1.0}


@every_family
def test_a_loaded_adapter_trains_only_if_asked(tmp_path: Path, model: nn.Module, family: str) -> None:
    path = saved(tmp_path, family)
    from diffusion_adapters.attach import adapter_sets

    load_adapter(model, path, "frozen")
    load_adapter(model, path, "trained", trainable=True)
    adapter_set = adapter_sets(model)["transformer"]
    for name, trained in (("frozen", False), ("trained", True)):
        assert {p.requires_grad for adapter in adapter_set.of(name).values() for p in adapter.parameters()} == {trained}


FRESH = """
import sys, torch
from diffusion_adapters import load_adapter, set_adapters
from tests.hosts import build, run
host, out, *files = sys.argv[1:]
model = build(host)
names = [load_adapter(model, file) for file in files]
set_adapters(model, names, [0.5 + 0.1 * i for i in range(len(names))])
torch.save(run(model, host), out)
"""


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    model = build(HOST)
    for family in FAMILIES:
        adapter_set = add_adapter(model, family, family, **small(family))
    stir(adapter_set.parameters())
    files = [save_adapter(model, family, tmp_path / f"{family}.safetensors") for family in FAMILIES]
    set_adapters(model, list(FAMILIES), [0.5 + 0.1 * i for i in range(len(FAMILIES))])
    command = [sys.executable, "-c", FRESH, HOST, str(tmp_path / "output"), *map(str, files)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=900)
    assert torch.equal(torch.load(tmp_path / "output"), run(model, HOST))


# ---- tensors that do not fit -----------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize(
    "fault", ["missing", "unexpected", "misshapen", "place missing", "place unknown", "nan", "inf"]
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, model: nn.Module, family: str, fault: str) -> None:
    path = saved(tmp_path, family)
    keys = sorted(key for key in parts(path)[0] if key.startswith(f"transformer.{PLACE}:"))
    key = keys[0]
    name = key.rpartition(":")[2]
    text = {
        "missing": rf"{PLACE}, weight \(16, 16\): .*missing {name}" if len(keys) > 1 else "incomplete: 1 projections",
        "unexpected": rf"{PLACE}, weight \(16, 16\): unexpected extra",
        "misshapen": rf"{PLACE}, weight \(16, 16\): {name} has shape .* instead of",
        "place missing": rf"incomplete: 1 projections are missing, the first is {PLACE}",
        "place unknown": r"made for another base, .*: 1 of \d+ projections do not exist here, .* blocks\.x",
        "nan": rf"transformer\.{PLACE}:\w+.* is not finite",
        "inf": rf"transformer\.{PLACE}:\w+.* is not finite",
    }

    def change(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        if fault == "missing":
            del tensors[key]
        elif fault == "unexpected":
            tensors[f"transformer.{PLACE}:extra"] = torch.zeros(2)
        elif fault == "misshapen":
            tensors[key] = torch.zeros((*tensors[key].shape, 3), dtype=tensors[key].dtype)
        elif fault == "place missing":
            for other in [other for other in tensors if other.startswith(f"transformer.{PLACE}:")]:
                del tensors[other]
        elif fault == "place unknown":
            tensors["transformer.blocks.x:A"] = torch.zeros(2, 2)
        else:
            value = next(
                v for k, v in tensors.items() if k.startswith(f"transformer.{PLACE}:") and v.is_floating_point()
            )
            value.view(-1)[0] = float(fault)

    assert_refused(model, rewrite(path, change), text[fault])


def test_an_adapter_that_is_not_finite_is_not_saved(model: nn.Module, tmp_path: Path) -> None:
    adapter_set = add_adapter(model, "one", rank=1)
    path = save_adapter(model, "one", tmp_path / "one.safetensors")
    before = path.read_bytes()
    with torch.no_grad():
        next(adapter_set.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(
        ValueError,
        match=r"transformer\.transformer_blocks.*\.to_q:\w+ is not finite in torch\.float32; nothing was saved",
    ):
        save_adapter(model, "one", path)
    assert path.read_bytes() == before


# ---- another base ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["sd3", "unet_sd15", "sd3_controlnet"])
@every_family
def test_another_base_is_refused_by_name(tmp_path: Path, model: nn.Module, family: str, other: str) -> None:
    path = saved(tmp_path, family, host=other)
    made_for = type(build(other)).__name__
    text = (
        rf"made for another base, {made_for} .*\[[0-9a-f]{{16}}\]; this is FluxTransformer2DModel .*\[[0-9a-f]{{16}}\]"
    )
    assert_refused(model, path, text)


def test_another_width_is_refused(tmp_path: Path, model: nn.Module) -> None:
    from diffusers import FluxTransformer2DModel

    config = {k: v for k, v in model.config.items() if not k.startswith("_")}  # type: ignore[union-attr,operator]
    wide = FluxTransformer2DModel(**{**config, "num_attention_heads": 3})
    add_adapter(wide, "one", rank=1)
    path = save_adapter(wide, "one", tmp_path / "one.safetensors")
    assert_refused(model, path, r"made for another base, FluxTransformer2DModel .*: its sizes are others")


def holds_weights(family: str) -> bool:
    """Whether a file of the family has something of the weights of its base."""
    made = FAMILIES[family](torch.randn(16, 16), FAMILIES[family].Config(**small(family)))
    return made.state_dict().keys() != dict(made.named_parameters()).keys()


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].reads_weight and holds_weights(f)])
def test_other_weights_are_refused_by_families_that_hold_them(tmp_path: Path, family: str) -> None:
    path = saved(tmp_path, family)
    other = build(HOST, seed=1)
    assert_refused(other, path, r"to_\w+.*not the base that the adapter was made for")


def test_a_file_of_a_component_that_is_not_there(tmp_path: Path) -> None:
    from types import SimpleNamespace

    parts = {"transformer": build("flux"), "transformer_2": build("flux")}
    pipe = SimpleNamespace(components=parts)
    for part in parts.values():
        add_adapter(part, "one", rank=1)
    path = save_adapter(pipe, "one", tmp_path / "one.safetensors")
    model = build("flux")
    with pytest.raises(ValueError, match=r"made for transformer_2; this model has transformer$"):
        load_adapter(model, path)
    assert list_adapters(model) == {}


# ---- files that are none ---------------------------------------------------------------------------------------------


def with_header(header: dict[str, Any] | bytes, data: bytes = b"", claim: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if claim is None else claim).to_bytes(8, "little") + text + data


def pickled() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream)
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "b" * 100)
    return stream.getvalue()


class Trap:
    """Unpickling it would be seen."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Trap, "sprung", True))


def trap() -> bytes:
    import pickle

    return pickle.dumps(Trap(), protocol=4)


TWO = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
PICKLE = "a pickle can run code when read and is never loaded; ask for a .safetensors file"
NONE = "not a safetensors file, or truncated"
DAMAGED = "damaged safetensors file"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.bin", pickled(), PICKLE),
        ("a.pt", trap(), PICKLE),
        ("a.CKPT", b"anything", PICKLE),
        ("zip.safetensors", zipped(), PICKLE),
        ("torch.safetensors", pickled(), PICKLE),
        ("pickle.safetensors", trap(), PICKLE),
        ("empty.safetensors", b"", NONE),
        ("short.safetensors", b"\x10\0\0", NONE),
        ("text.safetensors", b"<!doctype html><html>Not found</html>", NONE),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", NONE),
        ("giant.safetensors", with_header(b"{}", claim=2**62), NONE),
        ("claims.safetensors", with_header(b"{}" + b" " * 64, claim=2**20), NONE),
        ("json.safetensors", with_header(b'{"a": '), DAMAGED),
        ("negative.safetensors", with_header({"a": {**TWO, "data_offsets": [-8, 0]}}, b"\0" * 8), DAMAGED),
        ("overlap.safetensors", with_header({"a": TWO, "b": TWO}, b"\0" * 8), DAMAGED),
        ("hole.safetensors", with_header({"a": {**TWO, "data_offsets": [8, 16]}}, b"\0" * 16), DAMAGED),
        ("dtype.safetensors", with_header({"a": {**TWO, "dtype": "F99"}}, b"\0" * 8), DAMAGED),
        ("shape.safetensors", with_header({"a": {**TWO, "shape": [3]}}, b"\0" * 8), DAMAGED),
        ("beyond.safetensors", with_header({"a": {**TWO, "data_offsets": [0, 80]}}, b"\0" * 8), DAMAGED),
        ("plain.safetensors", with_header({"a": TWO}, b"\0" * 8), "no adapter file of a known kind"),
    ],
)
def test_what_is_no_adapter_file_is_refused(
    tmp_path: Path, model: nn.Module, name: str, content: bytes, text: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(model, path, re.escape(text))
    assert not Trap.sprung


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_truncated_file_is_refused(file: Path, model: nn.Module, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(model, file, f"{NONE}|{DAMAGED}")


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "large.safetensors"
    path.write_bytes(with_header(b"{" + b" " * (26 * 2**20) + b"}"))
    assert_refused(model, path, r"a header of \d+ bytes exceeds the limit of \d+")


def test_a_header_length_that_looks_like_a_pickle_loads(file: Path, model: nn.Module) -> None:
    """A pickle starts with the byte 0x80; so does a header of 128, 384, ... bytes."""
    for second in (1, 2, 4, 5):
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        text, data = content[8 : 8 + length], content[8 + length :]
        wanted = length
        while wanted % 256 != 0x80 or (wanted >> 8) % 256 != second:
            wanted += 1
        path = file.with_name(f"padded{second}.safetensors")
        path.write_bytes(with_header(text + b" " * (wanted - length), data))
        assert path.read_bytes()[:2] == bytes((0x80, second))
        load_adapter(model, path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format_version": 3}, r"format version 3 is newer than this library; update it"),
        ({"format_version": "x"}, r"damaged header|format version"),
        ({"format_version": 0}, r"format version 0 does not exist"),
        ({"family": "nosuch"}, r"unknown adapter family 'nosuch', .*available: .*lora"),
        ({"family": None}, r"damaged header|unknown adapter family"),
        ({"config": {"rank": 2, "depth": 3}}, r"unknown option 'depth' for LoRAConfig"),
        ({"config": {"rank": -2}}, r"rank must be at least 1, got -2"),
        ({"config": {"rank": "2"}}, r"rank must be int, got '2'"),
        ({"config": [2]}, r"damaged header"),
        ({"base": {}}, r"damaged header"),
        ({"base": {"transformer": {"name": "x"}}}, r"damaged header"),
        ({"base": {"transformer": 3}}, r"damaged header"),
        ({"target_modules": 3}, r"damaged header"),
        ({"target_modules": ["nosuch"]}, r"unknown target 'nosuch'"),
        ({"training": None}, r"damaged header"),
    ],
)
def test_a_wrong_header_is_refused(file: Path, model: nn.Module, change: dict[str, Any], text: str) -> None:
    assert_refused(model, rewrite(file, lambda _, document: document.update(change)), text)


@pytest.mark.parametrize("entry", ["{", "[]", "3", "null", '"text"', "{}"])
def test_a_damaged_header_entry_is_refused(file: Path, model: nn.Module, entry: str) -> None:
    tensors, metadata, _ = parts(file)
    safetensors.torch.save_file(tensors, file, {**metadata, FORMAT: entry})
    assert_refused(model, file, "damaged header")


@pytest.mark.parametrize("missing", ["format_version", "family", "config", "base", "target_modules"])
def test_an_incomplete_header_is_refused(file: Path, model: nn.Module, missing: str) -> None:
    assert_refused(model, rewrite(file, lambda _, document: document.pop(missing)), f"damaged header.*{missing}")


def test_paths_that_are_no_files(tmp_path: Path, model: nn.Module) -> None:
    assert_refused(model, tmp_path / "absent.safetensors", "no adapter file at", FileNotFoundError)
    assert_refused(model, tmp_path, r"no \.safetensors file in .*", FileNotFoundError)


# ---- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "fdopen", "replace"])
def test_a_full_disk_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, call: str, model: nn.Module
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    load_adapter(model, file, "one")
    before = file.read_bytes()
    monkeypatch.setattr(*{"replace": (Path, "replace")}.get(call, (os, call)), full)
    with pytest.raises(OSError, match=r"could not write .*lora\.safetensors: .*; nothing was saved") as caught:
        save_adapter(model, "one", file)
    assert caught.value.errno == errno.ENOSPC
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_an_interrupt_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    load_adapter(model, file, "one")
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(model, "one", file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_no_place_to_write(model: nn.Module, tmp_path: Path) -> None:
    add_adapter(model, "one", rank=1)
    with pytest.raises(ValueError, match=r"is a folder; give the name of a \.safetensors file"):
        save_adapter(model, "one", tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    add_adapter(model, "one", rank=1)
    with pytest.raises(OSError, match=r"could not write .*file.one\.safetensors"):
        save_adapter(model, "one", tmp_path / "file" / "one.safetensors")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ""])
def test_a_name_that_will_not_load_again_is_refused(model: nn.Module, tmp_path: Path, suffix: str) -> None:
    """Our own file under a pickle's name loads nowhere else; it is refused before the training's end is lost."""
    add_adapter(model, "one", rank=1)
    path = tmp_path / f"one{suffix}"
    try:
        save_adapter(model, "one", path)
    except ValueError as error:
        assert ".safetensors" in str(error)  # noqa: PT017
        assert not any(tmp_path.iterdir())
    else:
        load_adapter(model, path, "again")


def test_unknown_names_are_not_saved(model: nn.Module, tmp_path: Path) -> None:
    add_adapter(model, "one", rank=1)
    with pytest.raises(ValueError, match=r"unknown adapter 'oen', did you mean 'one'"):
        save_adapter(model, "oen", tmp_path / "one.safetensors")
    assert not any(tmp_path.iterdir())


def test_files_are_readable_as_any_other(tmp_path: Path) -> None:
    """The temporary file is private; the file is what the umask says."""
    mask = os.umask(0o027)
    try:
        path = write_safetensors({"a": torch.zeros(2)}, {}, tmp_path / "a.safetensors")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    square = torch.arange(12.0).view(3, 4)
    path = write_safetensors({"a": square.t(), "b": square[:, 1:3], "c": square[0]}, {}, tmp_path / "a.safetensors")
    tensors, _ = read_safetensors(path)
    assert torch.equal(tensors["a"], square.t())
    assert torch.equal(tensors["b"], square[:, 1:3])
    assert torch.equal(tensors["c"], square[0])


def test_a_pipeline_and_its_denoiser_read_each_others_files(tmp_path: Path) -> None:
    pipe = pipeline()
    stir(add_adapter(pipe.unet, "one", rank=1).parameters())
    wanted = sample(pipe)
    path = save_adapter(pipe.unet, "one", tmp_path / "one.safetensors")
    fresh = pipeline()
    load_adapter(fresh, path)
    assert torch.equal(sample(fresh), wanted)
    back = save_adapter(fresh, "one", tmp_path / "two.safetensors")
    again = pipeline()
    load_adapter(again.unet, back)
    assert torch.equal(sample(again), wanted)
