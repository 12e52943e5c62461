"""Adapter files for the command line, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from diffusion_adapters import add_adapter, save_adapter
from tests.hosts import build, pipeline, small, stir

Run = Callable[..., tuple[int, str, str]]


def trained(path: Path, family: str = "lora", seed: int = 2, host: str | None = None) -> Path:
    """An adapter file for the tiny pipeline, or for a denoiser of the zoo."""
    model = build(host) if host else pipeline()
    stir(add_adapter(model, "one", family, **small(family)).parameters(), seed=seed)
    return save_adapter(model, "one", path, trigger="a sks cat", training={"steps": 7})


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def assert_fails(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, nothing promised on stdout, and one line on stderr with all of `words`."""
    code, _, err = result
    assert code == 2
    message = last_line(err)
    assert "error: " in message
    assert "Traceback" not in err
    for word in words:
        assert word in message, err


def pixels(path: str | Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8).float()
