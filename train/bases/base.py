"""What every base is: a frozen pipeline, how to encode for it and what its denoiser is asked to predict."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_adapters.registry import Registry
from train.bases.latents import denormalized, draw, normalized
from train.bases.options import BaseOptions, refuse
from train.losses import Prediction

LOG = logging.getLogger("train")


class Base(ABC):
    """A frozen pipeline and how to drive it. A file of `train/bases/` registers one for its pipeline class.

    Built on `flow.FlowBase` or `discrete.DiscreteBase`: their `noised(batch)` makes noisy latents, levels and target.
    """

    component: ClassVar[str] = "unet"
    load_arguments: ClassVar[Mapping[str, Any]] = {}
    call_arguments: ClassVar[Mapping[str, Any]] = {}
    takes: ClassVar[frozenset[str]] = frozenset()
    """Those of the flags in `options.DEPENDENT` that have an effect on it."""
    sequence_length: ClassVar[int | None] = None
    """Tokens of a prompt that its pipeline reads, where `--max_sequence_length` may change it."""
    longest: ClassVar[int | None] = None
    """The most tokens that its pipeline lets it read."""

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        self.dtype: torch.dtype = self.denoiser.dtype  # type: ignore[assignment]
        self.length = options.max_sequence_length or self.sequence_length

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer that adapters go into."""
        return getattr(self.pipeline, self.component)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders by the pipeline's name for them; one that the pipeline goes without is left out."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if name.startswith("text_encoder") and isinstance(part, nn.Module)}

    @property
    def text_device(self) -> torch.device:
        """Where prompts are encoded."""
        return next((next(part.parameters()).device for part in self.text_encoders.values()), torch.device("cpu"))

    @classmethod
    def check(cls, options: BaseOptions, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise ValueError for an option that this base would not honour, by the components' configurations."""
        refuse(options, cls.takes, configs["pipeline"]["_class_name"])
        length = options.max_sequence_length
        if length and cls.longest and length > cls.longest:
            raise ValueError(f"--max_sequence_length {length} is longer than the {cls.longest} tokens that it can read")

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
        if vae.dtype != own:
            vae.to(own)
        return moments

    def latents(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(latents as the denoiser knows them, noise), both (b, c, h', w') in fp32, drawn from the samples' seeds."""
        mean, log_variance = batch["moments"].float().chunk(2, dim=1)
        posterior, noise = self.drawn(batch, mean)
        latents = mean + posterior * (log_variance.clamp(-30, 20) / 2).exp()
        return normalized(latents, self.pipeline.vae.config), noise

    def clean_and_noise(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`latents` of a batch, or with the noise of its seeds the `batch["latents"]`, which are as the denoiser knows.

        Differentiable in the latter.
        """
        if "latents" not in batch:
            return self.latents(batch)
        return batch["latents"], self.drawn(batch, batch["latents"])[1]

    def spread_at(self, level: Tensor, latents: Tensor) -> Tensor:
        """Where in [0, 1) `batch["spread"]` has to lie for these noise levels, (b,) in (0, 1), of such latents.

        The level is σ where noise is mixed in by it, else the part of the timesteps.
        """
        return level

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the denoiser knows them (b, c, h', w') -> images (b, 3, h, w) in about [-1, 1], differentiable."""
        vae = self.pipeline.vae
        return vae.decode(denormalized(latents, vae.config).to(vae.dtype), return_dict=False)[0].float()

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

    def call(self, prompts: Sequence[str], guidance_scale: float) -> dict[str, Any]:
        """What the pipeline is called with for pictures of `prompts`, but their size, steps and generators."""
        length = self.options.max_sequence_length
        given = {} if length is None else {"max_sequence_length": length}
        return {"prompt": list(prompts), "guidance_scale": guidance_scale, **given, **self.call_arguments}

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


@torch.no_grad()
def sample(
    base: Base, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance_scale: float, side: int
) -> list[Image.Image]:
    """One picture per pair of prompt and seed, with the adapters that are active."""
    found: list[Image.Image] = []
    for start in range(0, len(prompts), 8):
        part, own = list(prompts[start : start + 8]), seeds[start : start + 8]
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in own]
        settings = {"num_inference_steps": steps, "height": side, "width": side, "generator": generators}
        found += base.pipeline(**base.call(part, guidance_scale), **settings).images
    return found
