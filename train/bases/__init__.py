"""Bases: one file per architecture says how to encode for it and what its denoiser is asked to predict."""

from __future__ import annotations

import difflib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_adapters.registry import Registry
from train.bases.latents import draw, normalized
from train.bases.options import BaseOptions, refuse
from train.losses import Prediction

LOG = logging.getLogger("train")
ROOT = Path(__file__).resolve().parents[2]


class Base(ABC):
    """A frozen pipeline and how to drive it. A file of `train/bases/` registers one for its pipeline class.

    Built on `flow.FlowBase` or `discrete.DiscreteBase`: their `noised(batch)` makes noisy latents, levels and target.
    """

    component: ClassVar[str] = "unet"
    load_arguments: ClassVar[Mapping[str, Any]] = {}
    takes: ClassVar[frozenset[str]] = frozenset()
    """Those of the flags in `options.DEPENDENT` that have an effect on it."""

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        self.dtype: torch.dtype = self.denoiser.dtype  # type: ignore[assignment]

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer that adapters go into."""
        return getattr(self.pipeline, self.component)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders by the pipeline's name for them; one that the pipeline goes without is left out."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if name.startswith("text_encoder") and isinstance(part, nn.Module)}

    @classmethod
    @abstractmethod
    def native(cls, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
        """(side it was trained at, what any side is a multiple of) in pixels, by the components' configurations."""

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) in [-1, 1] -> what is cached of them: latent moments (b, 2c, h', w')."""
        vae = self.pipeline.vae
        own = vae.dtype
        if own == torch.float16 and vae.config.get("force_upcast"):
            vae.to(torch.float32)
        moments = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.parameters
        vae.to(own)
        return moments

    def latents(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(latents as the denoiser knows them, noise), both (b, c, h', w') in fp32, drawn from the samples' seeds."""
        mean, log_variance = batch["moments"].float().chunk(2, dim=1)
        posterior, noise = self.drawn(batch, mean)
        latents = mean + posterior * (log_variance.clamp(-30, 20) / 2).exp()
        return normalized(latents, self.pipeline.vae.config), noise

    def drawn(self, batch: Mapping[str, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """(what the posterior is sampled with, noise with its offset), both normal and of the shape of `like`."""
        shape, flat = like.shape[1:], (like.shape[1], *[1] * (like.dim() - 2))
        posterior, noise, offset = (value.to(like.device) for value in draw(batch["seeds"], shape, shape, flat))
        return posterior, noise + (self.options.noise_offset or 0.0) * offset

    @abstractmethod
    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Prompts -> what the denoiser is told, by name, each (b, ...) and of one length whatever the prompt.

        Differentiable in the parameters of `text_encoders` that require a gradient; normally none does.
        """

    @abstractmethod
    def predict(self, denoiser: nn.Module, batch: Mapping[str, Tensor]) -> Prediction:
        """Noise the cached images of `batch`, run `denoiser`, return prediction, target and weights.

        The noise comes from `draw(batch["seeds"], ...)` and its level from `batch["spread"]`, (b,) uniform in [0, 1):
        a sample is the same in any batch on any process. Prediction and target are plain latents, (b, c, h', w').
        """

    def warn_of_cuts(self, tokenizer: Any, prompts: Sequence[str], limit: int | None = None) -> None:
        """Say which prompts are longer than the tokenizer, or `limit`, lets pass."""
        limit = limit or tokenizer.model_max_length
        marks = tokenizer.num_special_tokens_to_add()
        for prompt in prompts:
            if len(tokenizer(prompt).input_ids) > limit:
                LOG.warning(f"only the first {limit - marks} tokens are read of: {prompt}")


BASES: Registry[type[Base]] = Registry("base", "train.bases")


def latent_factor(config: Mapping[str, Any]) -> int:
    """Pixels per latent, of a VAE with this configuration."""
    return 2 ** (len(config["block_out_channels"]) - 1)


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
        names = {name.lower(): name for name in dir(diffusers)}
        driven = ", ".join(names.get(alias, alias) for base in BASES for alias in BASES.aliases(base))
        raise ValueError(f"{source} is a {name}, which no file in train/bases/ drives; available: {driven}")
    kind = BASES[name.lower()]
    refuse(options, kind.takes, name)
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
