"""Bases: one file per architecture says how to encode for it and what its denoiser is asked to predict."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_adapters.options import Options, option
from diffusion_adapters.registry import Registry
from train.losses import Prediction

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class BaseOptions(Options):
    title: ClassVar[str] = "base"
    pretrained_model_name_or_path: str = option("pipelines/pocket", "folder or Hub id of a diffusers pipeline")
    revision: str | None = option(None, "branch, tag or commit on the Hub")
    variant: str | None = option(None, "variant of the weight files, such as fp16")
    snr_gamma: float | None = option(None, "min-SNR weighting of the loss, 5.0 in the paper (default: none)", gt=0)


class Base(ABC):
    """A frozen pipeline and how to drive it. A file of `train/bases/` registers one for its pipeline class."""

    component: ClassVar[str] = "unet"
    load_arguments: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer that adapters go into."""
        return getattr(self.pipeline, self.component)

    @classmethod
    @abstractmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        """(side it was trained at, what any side is a multiple of) in pixels, by the components' configurations."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) in [-1, 1] -> what is cached of them, such as latent moments (b, 2c, h', w')."""

    @abstractmethod
    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Prompts -> what the denoiser is told, by name, each (b, ...)."""

    @abstractmethod
    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        """Noise the cached images of `batch`, run `denoiser`, return prediction, target and weights.

        The noise comes from `draw(batch["seeds"], ...)` and its level from `batch["spread"]`, (b,) uniform in [0, 1):
        a sample is the same in any batch on any process.
        """


BASES: Registry[type[Base]] = Registry("base", "train.bases")


def draw(seeds: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Two normal tensors of `shape` from each seed: twice (b, *shape), on the CPU."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    first, second = ([torch.randn(tuple(shape), generator=own) for own in generators] for _ in range(2))
    return torch.stack(first), torch.stack(second)


@dataclass(frozen=True)
class BaseInfo:
    """What the configuration files say of a base, before any weight is read."""

    source: str
    kind: type[Base]
    side: int
    multiple: int
    denoiser: Callable[[], nn.Module | None]
    """Makes the denoiser without its numbers, on the meta device; None if its class is not one of diffusers."""


def inspect_base(options: BaseOptions) -> BaseInfo:
    """Read the configurations of a base. Raises FileNotFoundError, or ValueError for a pipeline that no file drives."""
    import diffusers

    source = _find(options.pretrained_model_name_or_path)
    where: dict[str, Any] = {"revision": options.revision}
    try:
        index = diffusers.DiffusionPipeline.load_config(source, **where)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "neither a folder with a model_index.json nor on the Hub"
        raise FileNotFoundError(f"--pretrained_model_name_or_path {source}: {what} ({said})") from None
    name = index["_class_name"]
    if name.lower() not in BASES:
        driven = ", ".join(alias for base in BASES for alias in BASES.aliases(base))
        raise ValueError(f"{source} is a {name}, which no file in train/bases/ drives; available: {driven}")
    kind = BASES[name.lower()]
    configs: dict[str, Mapping[str, Any]] = {}
    for component, entry in index.items():
        if isinstance(entry, (list, tuple)) and entry[0] == "diffusers" and hasattr(diffusers, str(entry[1])):
            configs[component] = getattr(diffusers, entry[1]).load_config(source, subfolder=component, **where)

    def denoiser() -> nn.Module | None:
        owner, name = index[kind.component]
        if owner != "diffusers":
            return None
        with torch.device("meta"):
            return getattr(diffusers, name).from_config(configs[kind.component])

    side, multiple = kind.native(configs)
    return BaseInfo(source, kind, side, multiple, denoiser)


def load_base(info: BaseInfo, options: BaseOptions, device: torch.device, dtype: torch.dtype) -> Base:
    """Load the frozen pipeline."""
    import diffusers

    which = {"revision": options.revision, "variant": options.variant, "dtype": dtype}
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(info.source, **which, **info.kind.load_arguments)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--pretrained_model_name_or_path {info.source}: cannot be loaded: {said}") from error
    pipeline.set_progress_bar_config(disable=True)
    return info.kind(pipeline.to(device), options)


def _find(source: str) -> str:
    """`source` as a folder: here, or in the clone; else a Hub id. Raises FileNotFoundError for what can be neither."""
    path = Path(source).expanduser()
    for candidate in (path, ROOT / path):
        if candidate.is_dir():
            return source if candidate == Path(source) else str(candidate)
    flag = f"--pretrained_model_name_or_path {source}"
    if path.is_file():
        raise ValueError(f"{flag} is a file; give the folder of a diffusers pipeline, with its model_index.json")
    parent = path.parent if str(path.parent) != "." else Path()
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or (ROOT / parent).is_dir():
        siblings = [p.name for p in (ROOT / parent).iterdir() if p.is_dir()] if (ROOT / parent).is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {parent / close[0]}?" if close else "give the folder of a diffusers pipeline or a Hub id"
        raise FileNotFoundError(f"{flag}: no such folder; {hint}")
    return source


@torch.no_grad()
def sample(
    base: Base, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance_scale: float, side: int
) -> list[Image.Image]:
    """One picture per pair of prompt and seed, with the adapters that are active."""
    found: list[Image.Image] = []
    for start in range(0, len(prompts), 8):
        part, own = list(prompts[start : start + 8]), seeds[start : start + 8]
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in own]
        settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "height": side, "width": side}
        found += base.pipeline(part, generator=generators, **settings).images
    return found
