"""From the name of a pipeline to its base: found, checked by its configuration files, then loaded."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from diffusion_adapters.safe import from_safetensors
from train.bases import quantize
from train.bases.base import BASES, Base
from train.bases.options import BaseOptions

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class BaseInfo:
    """What the configuration files say of a base, before any weight is read."""

    source: str
    kind: type[Base]
    side: int
    multiple: int
    denoiser: Callable[[], nn.Module | None]
    """Makes the denoiser without its numbers, on the meta device; None if its class is not one of diffusers."""
    guidance_scale: float
    """What its pipeline samples with unless told otherwise."""
    absent: tuple[str, ...]
    """Components that the pipeline goes without."""
    vae: Callable[..., nn.Module] | None
    """Loads the VAE that takes the place of the pipeline's own."""
    text_encoders: Mapping[str, str]
    """Classes of its text encoders by component."""


def inspect_base(options: BaseOptions) -> BaseInfo:
    """Read the configurations of a base. Raises FileNotFoundError, or ValueError for a pipeline that no file drives."""
    import diffusers

    source = _find("--pretrained_model_name_or_path", options.pretrained_model_name_or_path, "a diffusers pipeline")
    where: dict[str, Any] = {"revision": options.revision}
    try:
        index = diffusers.DiffusionPipeline.load_config(source, **where)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "neither a folder with a model_index.json nor on the Hub"
        raise FileNotFoundError(f"--pretrained_model_name_or_path {source}: {what} ({said})") from None
    name = index["_class_name"]
    if name.lower() not in BASES:
        names = {name.lower(): name for name in dir(diffusers)}
        driven = ", ".join(names.get(alias, alias) for base in BASES for alias in BASES.aliases(base))
        raise ValueError(f"{source} is a {name}, which no file in train/bases/ drives; available: {driven}")
    kind = BASES[name.lower()]
    configs: dict[str, Mapping[str, Any]] = {"pipeline": index}
    for component, entry in index.items():
        if isinstance(entry, (list, tuple)) and entry[0] == "diffusers" and hasattr(diffusers, str(entry[1])):
            configs[component] = getattr(diffusers, entry[1]).load_config(source, subfolder=component, **where)
    vae = None
    if options.pretrained_vae_model_name_or_path is not None:
        kind_of_vae = getattr(diffusers, index["vae"][1])
        vae = functools.partial(from_safetensors, kind_of_vae, _vae(options, configs))

    def denoiser() -> nn.Module | None:
        owner, name = index[kind.component]
        if owner != "diffusers":
            return None
        with torch.device("meta"):
            return getattr(diffusers, name).from_config(configs[kind.component])

    kind.check(options, configs)
    side, multiple = kind.native(configs)
    absent = tuple(name for name, entry in index.items() if isinstance(entry, (list, tuple)) and entry[0] is None)
    parts = {part: entry[1] for part, entry in index.items() if isinstance(entry, (list, tuple)) and entry[0]}
    texts = {part: title for part, title in parts.items() if part.startswith("text_encoder")}
    return BaseInfo(source, kind, side, multiple, denoiser, _guidance(name), absent, vae, texts)


def load_base(info: BaseInfo, options: BaseOptions, device: torch.device, dtype: torch.dtype) -> Base:
    """Load the frozen pipeline."""
    import diffusers

    which: dict[str, Any] = {**dict.fromkeys(info.absent), **info.kind.load_arguments}
    which |= {"revision": options.revision, "variant": options.variant, "dtype": dtype}
    if options.quantization is not None:
        quantize.check(options.quantization, device)
        which |= quantize.settings(options.quantization, info.kind.component, dtype)
    try:
        if info.vae is not None:
            which["vae"] = info.vae(dtype=dtype)
        pipeline = from_safetensors(diffusers.DiffusionPipeline, info.source, **which)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--pretrained_model_name_or_path {info.source}: cannot be loaded: {said}") from error
    pipeline.set_progress_bar_config(disable=True)
    return info.kind(pipeline.to(device), options)


def _guidance(pipeline: str) -> float:
    """The default of a pipeline's guidance: the one by the name of true_cfg_scale where the other is not set."""
    import diffusers

    kind = getattr(diffusers, pipeline, None)
    parameters = inspect.signature(kind.__call__).parameters if kind else {}
    defaults = [parameters[name].default for name in ("guidance_scale", "true_cfg_scale") if name in parameters]
    return next((float(value) for value in defaults if isinstance(value, (int, float))), 1.0)


def _vae(options: BaseOptions, configs: dict[str, Mapping[str, Any]]) -> str:
    """Where the VAE that was asked for is; its configuration takes the place of the pipeline's own."""
    import diffusers

    name, own = "--pretrained_vae_model_name_or_path", configs["vae"]
    source = _find(name, options.pretrained_vae_model_name_or_path or "", "a VAE")
    kind = getattr(diffusers, own["_class_name"])
    try:
        config = kind.load_config(source)
    except (OSError, ValueError):
        raise FileNotFoundError(f"{name} {source}: no configuration of a VAE there; give its own folder") from None
    for key in ("_class_name", "latent_channels"):
        if config.get(key) != own.get(key):
            said, needed = config.get(key), own.get(key)
            raise ValueError(f"{name} {source}: {key} is {said}, where this pipeline needs {needed}")
    configs["vae"] = config
    return source


def _find(name: str, source: str, what: str) -> str:
    """`source` as a folder: here, or in the clone; else a Hub id. Raises FileNotFoundError for what can be neither."""
    path = Path(source).expanduser()
    for candidate in (path, ROOT / path):
        if candidate.is_dir():
            return source if candidate == Path(source) else str(candidate)
    flag = f"{name} {source}"
    if path.is_file():
        raise ValueError(f"{flag} is a file; give the folder of {what}, with its configuration file")
    parent = path.parent if str(path.parent) != "." else Path()
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or (ROOT / parent).is_dir():
        siblings = [p.name for p in (ROOT / parent).iterdir() if p.is_dir()] if (ROOT / parent).is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {parent / close[0]}?" if close else f"give the folder of {what} or a Hub id"
        raise FileNotFoundError(f"{flag}: no such folder; {hint}")
    return source
