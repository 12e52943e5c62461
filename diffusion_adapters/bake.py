"""Bake: write the pipeline with adapters added to its weights, a checkpoint that needs no adapters any more."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .active import use_adapters
from .attach import fuse_adapters, unfuse_adapters
from .file import version
from .sources import Sources
from .text import merged_copy
from .tokens import find_text_encoders, token_parts

PROVENANCE = "diffusion_adapters.json"


@torch.no_grad()
def bake(
    model: Any,
    names: str | Sequence[str] | Mapping[str, Any] | None,
    path: str | Path,
    *,
    adapter_weights: Any = None,
    **settings: Any,
) -> Path:
    """Write `model`, a pipeline or a denoiser, to the new folder `path` with adapters added to its weights.

    `names`, `adapter_weights`: as for `export_lora`. `settings` go to `save_pretrained` (`variant`, `max_shard_size`).
    Numbers are safetensors in the dtype that the model has; PROVENANCE in the folder says what was baked in. The model
    is afterwards bitwise what it was, its adapters as active as before. Raises ValueError for a weight that is not
    constant and for a sum that is not finite, RuntimeError where weights cannot be written; then there is no folder.
    """
    sources = Sources(model, names, adapter_weights, "baked in")
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists; give the name of a new folder")
    if tokens := [name for name in sources.names if token_parts(model, name)]:
        raise ValueError(
            f"adapter {tokens[0]!r} has new tokens, which a checkpoint has no place for; export it instead"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with use_adapters(model, sources.names, dict(sources.weights)), _fused(model), _merged_text(model):
            model.save_pretrained(beside, safe_serialization=True, **settings)
        made = {"created_by": f"diffusion-adapters {version()}", "method": "bake", "sources": sources.provenance()}
        (beside / PROVENANCE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        beside.chmod(0o755)
        if path.exists():
            path.rmdir()
        beside.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}; nothing was saved") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


@contextlib.contextmanager
def _fused(model: Any) -> Iterator[None]:
    fuse_adapters(model)
    try:
        yield
    finally:
        unfuse_adapters(model)


@contextlib.contextmanager
def _merged_text(model: Any) -> Iterator[None]:
    """Inside, text encoders that carry LoRAs are copies with those that act added to their weights."""
    encoders = find_text_encoders(model)
    before = {component: encoder for component, encoder in encoders.items() if getattr(encoder, "peft_config", None)}
    try:
        for component, encoder in before.items():
            setattr(model, component, merged_copy(component, encoder))
        yield
    finally:
        for component, encoder in before.items():
            setattr(model, component, encoder)
