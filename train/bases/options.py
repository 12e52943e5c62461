"""What a base can be told: the flags, and which of them a kind of base takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from diffusion_adapters.options import Options, option
from train.bases.quantize import PACKAGES

WEIGHTING_SCHEMES = ("none", "sigma_sqrt", "logit_normal", "mode", "cosmap")
DISCRETE = frozenset({"snr_gamma", "noise_offset"})
FLOW = frozenset({"noise_offset", "weighting_scheme", "logit_mean", "logit_std", "mode_scale"})
DEPENDENT = {  # flags that not every base takes, each with what takes it
    "snr_gamma": "bases of discrete noise levels",
    "noise_offset": "bases whose noise is drawn here",
    "weighting_scheme": "bases of flow matching",
    "logit_mean": "bases of flow matching",
    "logit_std": "bases of flow matching",
    "mode_scale": "bases of flow matching",
    "max_sequence_length": "bases with a text encoder of free length, such as T5",
    "training_guidance_scale": "denoisers that are told a guidance scale, such as FLUX.1-dev",
}


@dataclass(frozen=True, kw_only=True)
class BaseOptions(Options):
    title: ClassVar[str] = "base"
    pretrained_model_name_or_path: str = option("pipelines/pocket", "folder or Hub id of a diffusers pipeline")
    revision: str | None = option(None, "branch, tag or commit on the Hub")
    variant: str | None = option(None, "variant of the weight files, such as fp16")
    pretrained_vae_model_name_or_path: str | None = option(None, "folder or Hub id of a VAE to use instead of its own")
    quantization: str | None = option(None, "keep the frozen denoiser in 8 or 4 bit", choices=tuple(PACKAGES))
    max_sequence_length: int | None = option(
        None, "tokens of a prompt that T5 and its like read (default: as the pipeline)", ge=1
    )
    training_guidance_scale: float | None = option(
        None, "guidance that a guidance-distilled denoiser is told in training (default: 1)", ge=0
    )
    snr_gamma: float | None = option(None, "min-SNR weighting of the loss, 5.0 in the paper (default: none)", gt=0)
    noise_offset: float | None = option(None, "noise that is the same at every pixel, added times this", gt=0)
    weighting_scheme: str | None = option(
        None,
        "flow matching: how noise levels are drawn or weighted (default: the base's)",
        choices=WEIGHTING_SCHEMES,
    )
    logit_mean: float | None = option(
        None, "mean of the logit of logit_normal; higher is less noise, as in diffusers (default: 0)"
    )
    logit_std: float | None = option(None, "standard deviation of the logit of logit_normal (default: 1)", gt=0)
    mode_scale: float | None = option(None, "how far mode moves noise levels to the middle (default: 1.29)", ge=-1)


def refuse(options: BaseOptions, takes: Collection[str], pipeline: str) -> None:
    """Raise ValueError for a flag that was given and that a base which `takes` these would not honour."""
    for name, who in DEPENDENT.items():
        value = getattr(options, name)
        if value is not None and name not in takes:
            raise ValueError(f"--{name} {value} has no effect on a {pipeline}: it is for {who}; leave it out")
