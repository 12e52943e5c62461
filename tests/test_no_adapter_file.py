"""What is no adapter file, or a damaged one, is refused with a reason."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from diffusion_adapters import load_adapter
from diffusion_adapters.file import FORMAT
from tests.files import assert_refused, parts, rewrite, saved


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(tmp_path)


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
