"""The models of a pipeline without their numbers: what it takes to see whether a file fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .attach import DENOISER_NAMES


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Denoisers and text encoders by component name, on the meta device."""

    name: str
    components: dict[str, nn.Module]


def skeleton(source: str | Path, token: str | bool | None = None) -> Skeleton:
    """Of the pipeline at a path or Hub id. Only its configuration files are read.

    Raises FileNotFoundError if there is none, ValueError if it cannot be told from them.
    """
    import diffusers
    import transformers

    options: dict[str, Any] = {"token": token} if token is not None else {}
    try:
        index = diffusers.DiffusionPipeline.load_config(str(source), **options)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(f"base {source}: no pipeline of diffusers there: {reason}") from error
    found: dict[str, nn.Module] = {}
    for name, entry in index.items():
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or entry[1] is None:
            continue
        try:
            with torch.device("meta"):
                if name in DENOISER_NAMES:
                    kind: Any = getattr(diffusers, entry[1])
                    found[name] = kind.from_config(kind.load_config(str(source), subfolder=name, **options))
                elif name.startswith("text_encoder"):
                    kind = getattr(transformers, entry[1])
                    found[name] = kind(kind.config_class.from_pretrained(str(source), subfolder=name, **options))
        except (AttributeError, OSError, TypeError) as error:
            raise ValueError(f"base {source}: its {name}, a {entry[1]}, cannot be made: {error}") from error
    return Skeleton(Path(source).name, found)
