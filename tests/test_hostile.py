"""Files that are broken or mean harm: one line of ours says why, nothing is attached, no memory is spent."""

from __future__ import annotations

import json
import pickle
import random
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from diffusion_adapters import delete_adapters, inspect_adapter, list_adapters, load_adapter
from diffusion_adapters.safe import MAX_HEADER_BYTES
from tests import dialects
from tests.dialects import CASES
from tests.test_formats import applied, fresh

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
UP, DOWN, ALPHA = f"{KEY}.lora_up.weight", f"{KEY}.lora_down.weight", f"{KEY}.alpha"


def good() -> dict[str, torch.Tensor]:
    """A file of one layer, of 8 channels."""
    torch.manual_seed(1)
    return {UP: torch.randn(8, 2), DOWN: torch.randn(2, 8), ALPHA: torch.tensor(4.0)}


def raw(header: Any, data: bytes = b"", claim: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + data


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def with_(**changes: torch.Tensor) -> Callable[[], bytes]:
    names = {"up": UP, "down": DOWN, "alpha": ALPHA}
    return lambda: safetensors.torch.save({**good(), **{names[name]: value for name, value in changes.items()}})


def without(*keys: str) -> Callable[[], bytes]:
    return lambda: safetensors.torch.save({key: value for key, value in good().items() if key not in keys})


class Bomb:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was run",))


TWO = {UP: entry([8, 2], 0, 64), DOWN: entry([2, 8], 64, 128)}
NAN = torch.full((8, 2), float("nan"))
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a pickle": (lambda: pickle.dumps(Bomb()), "a pickle can run code"),
    "a pickle of torch": (lambda: b"PK\3\4" + b"\0" * 60, "a pickle can run code"),
    "empty": (lambda: b"", "not a safetensors file, or truncated"),
    "text": (lambda: b"<html>404</html>", "not a safetensors file, or truncated"),
    "a header of 1 GB": (lambda: raw(b"{}", claim=2**30), "its header claims 1073741824"),
    "a header of 2^63": (lambda: raw(b"{}", claim=2**63), "its header claims"),
    "a long header": (lambda: raw(b"{" + b" " * MAX_HEADER_BYTES + b"}"), "exceeds the limit"),
    "half a file": (lambda: safetensors.torch.save(good())[:-40], "damaged safetensors file"),
    "half a header": (lambda: safetensors.torch.save(good())[:60], "not a safetensors file, or truncated"),
    "no JSON": (lambda: raw(b"{nonsense}"), "damaged safetensors file"),
    "a deep header": (lambda: raw(b'{"a":' * 9999 + b"1" + b"}" * 9999), "damaged safetensors file"),
    "negative offsets": (lambda: raw({UP: entry([8, 2], -64, 0)}, bytes(64)), "damaged safetensors file"),
    "offsets beyond the end": (lambda: raw({UP: entry([8, 2], 0, 64)}, bytes(8)), "damaged safetensors file"),
    "overlapping tensors": (
        lambda: raw({UP: entry([8, 2], 0, 64), DOWN: entry([2, 8], 32, 96)}, bytes(96)),
        "damaged safetensors file",
    ),
    "a hole": (lambda: raw({**TWO, DOWN: entry([2, 8], 68, 132)}, bytes(132)), "damaged safetensors file"),
    "a shape of 2^60": (lambda: raw({UP: entry([2**30, 2**30], 0, 64)}, bytes(64)), "damaged safetensors file"),
    "a negative shape": (lambda: raw({UP: entry([-8, -2], 0, 64)}, bytes(64)), "damaged safetensors file"),
    "an unknown dtype": (lambda: raw({UP: entry([8, 2], 0, 64, "F99")}, bytes(64)), "damaged safetensors file"),
    "no tensors": (lambda: raw({"__metadata__": {"format": "pt"}}), "no adapter file of a known kind: 0 tensors"),
    "another model's checkpoint": (
        lambda: safetensors.torch.save({"encoder.layer.0.bias": torch.zeros(2)}),
        "no adapter file of a known kind: 1 tensors, the first is 'encoder.layer.0.bias'",
    ),
    "not a number": (with_(up=NAN), "lora_up.weight is not finite"),
    "infinity": (with_(down=torch.full((2, 8), float("inf"))), "lora_down.weight is not finite"),
    "alpha not a number": (with_(alpha=torch.tensor(float("nan"))), "alpha is not finite"),
    "alpha of zero": (with_(alpha=torch.tensor(0.0)), "alpha must be greater than 0"),
    "alpha of two": (with_(alpha=torch.ones(2)), "alpha has shape (2,) instead of (1,)"),
    "integers": (with_(up=torch.ones(8, 2, dtype=torch.int64)), "dtype int64, which no adapter is stored in"),
    "booleans": (with_(up=torch.ones(8, 2, dtype=torch.bool)), "dtype bool, which no adapter is stored in"),
    "complex": (with_(up=torch.ones(8, 2, dtype=torch.complex64)), "dtype complex64"),
    "no up": (without(UP), "it has down, but no up"),
    "no down": (without(DOWN), "it has up, but no down"),
    "another width": (with_(down=torch.ones(2, 9)), "down has shape (2, 9) instead of (2, 8)"),
    "another rank": (with_(up=torch.ones(8, 3)), "up has shape (8, 3) instead of (8, 2)"),
    "a scalar": (with_(up=torch.tensor(1.0)), "weight (8, 8): "),
    "no values": (with_(up=torch.ones(8, 0), down=torch.ones(0, 8)), "which holds no number"),
    "keys of another architecture": (
        lambda: safetensors.torch.save({k.replace("down_blocks_0", "no_such_blocks_0"): v for k, v in good().items()}),
        "there is no such layer",
    ),
    "one layer twice": (
        lambda: safetensors.torch.save(
            {**good(), **{k.replace("down_blocks_0_attentions_0", "input_blocks_1_1"): v for k, v in good().items()}}
        ),
        "another layer of the file is the same one",
    ),
    "a product that would fill memory": (
        lambda: safetensors.torch.save(
            {
                f"{KEY}.lora_mid.weight": torch.ones(1, 1, 500, 500),
                DOWN: torch.ones(1, 500_000, 1, 1),
                UP: torch.ones(8, 1, 1, 1),
            }
        ),
        "do not make 8 columns",
    ),
    "a Kronecker product that would": (
        lambda: safetensors.torch.save(
            {f"{KEY}.lokr_w1": torch.ones(900, 900), f"{KEY}.lokr_w2": torch.ones(900, 900)}
        ),
        "its columns are not 8",
    ),
    "our header, broken": (
        lambda: safetensors.torch.save(good(), {"diffusion-adapters": "{" * 500}),
        "damaged header",
    ),
    "our header, of a path": (
        lambda: safetensors.torch.save(
            good(), {"diffusion-adapters": json.dumps({"format_version": 1, "family": "../../etc/passwd"})}
        ),
        "unknown adapter family",
    ),
}


def refused(pipe: Any, path: Path) -> str:
    """The one line with which a file is refused, by loading and by the doctor alike; nothing is attached."""
    lines = []
    for call in (lambda: load_adapter(pipe, path, "bad"), lambda: inspect_adapter(path, pipe).verdict):
        try:
            lines.append(str(call()))
        except (ValueError, FileNotFoundError) as error:
            lines.append(str(error))
    assert list_adapters(pipe) == {}
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    assert lines[0] != "bad", "it was loaded"
    assert "\n" not in lines[0] + lines[1]
    assert lines[0].startswith(str(path))
    assert lines[0].removeprefix(f"{path}: ") in lines[1]
    return lines[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, text = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert text in refused(fresh("stable_diffusion"), path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10, "KiB"


def test_a_good_file_of_the_same_kind_loads(tmp_path: Path) -> None:
    path = dialects.save(good(), tmp_path / "good.safetensors")
    assert load_adapter(fresh("stable_diffusion"), path) == "good"


def test_names_in_headers_are_text_alone(tmp_path: Path) -> None:
    """No key of a header is taken for a path."""
    told = {"ss_output_name": "../../evil", "modelspec.title": "/etc/passwd", "ss_sd_model_name": "..\\..\\evil"}
    path = dialects.save(good(), tmp_path / "named.safetensors", told)
    assert load_adapter(fresh("stable_diffusion"), path) == "named"
    assert "evil" not in str(inspect_adapter(path))
    assert sorted(tmp_path.iterdir()) == [path]


# ---- a fuzzer --------------------------------------------------------------------------------------------------------


def mutations(tensors: dialects.Tensors, data: bytes, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """A file changed in one way, byte by byte or tensor by tensor."""
    header = 8 + int.from_bytes(data[:8], "little")
    while True:
        keys = list(tensors)
        key = dice.choice(keys)
        kind = dice.choice(("cut", "header bytes", "data bytes", "drop", "shape", "rename", "dtype", "poison", "swap"))
        changed = dict(tensors)
        if kind == "cut":
            yield kind, data[: dice.randrange(len(data))]
            continue
        if kind.endswith("bytes"):
            start, stop = (0, header) if kind == "header bytes" else (header, len(data))
            flipped = bytearray(data)
            for _ in range(dice.randint(1, 8)):
                flipped[dice.randrange(start, stop)] = dice.randrange(256)
            yield kind, bytes(flipped)
            continue
        if kind == "drop":
            del changed[key]
        elif kind == "shape":
            value = changed[key].flatten()
            changed[key] = value.reshape(dice.choice([(-1,), (1, -1), (-1, 1), (-1, 1, 1), (1, 1, 1, 1, -1)]))
        elif kind == "rename":
            place = dice.randrange(len(key))
            changed[key[:place] + dice.choice("._0aW/:é") + key[place + 1 :]] = changed.pop(key)
        elif kind == "dtype":
            kinds = (torch.float16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn)
            changed[key] = changed[key].to(dice.choice(kinds))
        elif kind == "poison":
            changed[key] = torch.full_like(changed[key], dice.choice([float("nan"), float("inf"), -float("inf")]))
        else:
            other = dice.choice(keys)
            changed[key], changed[other] = changed[other], changed[key]
        yield kind, safetensors.torch.save({k: v.contiguous() for k, v in changed.items()})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_mutated_files_load_exactly_or_are_refused(case: str, tmp_path: Path) -> None:
    """20 of each dialect: what loads is what the file says on all layers, and differs where the file was changed."""
    pipeline, make = CASES[case]
    pipe = fresh(pipeline)
    tensors, meant = make(pipe)
    data = safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})
    loaded = 0
    path = tmp_path / "mutant.safetensors"
    for _, (kind, mutant) in zip(range(20), mutations(tensors, data, random.Random(case)), strict=False):
        path.write_bytes(mutant)
        name, line = "", ""
        try:
            name = load_adapter(pipe, path)
        except (ValueError, FileNotFoundError) as error:
            line = str(error)
        if line:
            assert "\n" not in line
            assert line.startswith(str(path)), kind
            assert list_adapters(pipe) == {}
            continue
        loaded += 1
        held = safetensors.torch.load(mutant)
        same = [
            key for key, value in held.items() if key in tensors and torch.equal(value.float(), tensors[key].float())
        ]
        found = applied(pipe, name)
        assert found.keys() == meant.keys(), kind
        off = 0
        for component, own in meant.items():
            assert found[component].keys() == own.keys(), kind
            for place, delta in own.items():
                assert found[component][place].isfinite().all(), kind
                off += float((found[component][place] - delta).norm() / delta.norm()) > 1e-5
        assert off <= 4 * (len(tensors) - len(same)), kind  # a fused layer is four of ours
        delete_adapters(pipe, name)
    assert loaded < 20
