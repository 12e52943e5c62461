"""The state of a run as data: any nest of numbers, texts and tensors <-> one JSON file and one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

TENSORS, NUMBERS = "state.safetensors", "state.json"


def write(tree: Mapping[str, Any], folder: Path) -> None:
    """Write a nest of dicts, lists and tuples whose leaves are tensors, numbers, texts, booleans and None.

    Every number and tensor comes back bit by bit, in its dtype. Raises TypeError, with its place, for any other leaf.
    """
    tensors: dict[str, Tensor] = {}
    plain = _pack(tree, "", tensors)
    (folder / NUMBERS).write_text(json.dumps(plain), encoding="utf-8")
    safetensors.torch.save_file(tensors, folder / TENSORS)


def read(folder: Path) -> dict[str, Any]:
    """What `write` wrote, with the tensors on the CPU. Raises ValueError for anything else; never unpickles."""
    try:
        plain = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
        return _unpack(plain, safetensors.torch.load_file(folder / TENSORS))
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder}: damaged state: {type(error).__name__}: {error}") from error


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": place}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place.strip('/')} is a {type(value).__name__}, which a checkpoint cannot hold")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    return {key: _unpack(item, tensors) for key, item in value["items"]}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load an optimizer's `state_dict`, its dtypes too: torch casts what it loads to the dtype of the parameters."""
    optimizer.load_state_dict(dict(saved))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in saved["state"].items():
        own = optimizer.state[parameters[number]]
        for name, value in values.items():
            if isinstance(value, Tensor) and own[name].dtype != value.dtype:
                own[name] = value.to(own[name].device)


def size(tree: Any) -> int:
    """Bytes of all tensors of a nest."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(size(item) for item in items)
