"""Adapter files of a tiny transformer: written, taken apart, changed, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from diffusion_adapters import add_adapter, list_adapters, load_adapter, save_adapter
from diffusion_adapters.file import FORMAT
from diffusion_adapters.safe import read_safetensors
from tests.hosts import HOST, build, run, small, stir


def saved(folder: Path, family: str = "lora", host: str = HOST, **settings: Any) -> Path:
    model = build(host)
    stir(add_adapter(model, "one", family, **small(family)).parameters())
    return save_adapter(model, "one", folder / f"{family}.safetensors", **settings)


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
