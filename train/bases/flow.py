"""Flow matching: latents move to noise in a straight line, and a denoiser predicts the velocity, noise − latents.

Esser et al. 2024, https://arxiv.org/abs/2403.03206: levels in section 3.1, shift in 5.3.2. Scheme names, their meaning
and their defaults are those of diffusers' training scripts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from train.bases import Base, BaseOptions
from train.bases.latents import Noised
from train.bases.options import FLOW


def levels(spread: Tensor, options: BaseOptions, scheme: str) -> Tensor:
    """σ before the shift, (b,) in (0, 1]: uniform `spread` in [0, 1) through the inverse distribution of the scheme."""
    u = spread.double()
    if scheme == "logit_normal":
        mean, std = options.logit_mean or 0.0, 1.0 if options.logit_std is None else options.logit_std
        u = torch.special.expit(mean + std * torch.special.ndtri(u))
    elif scheme == "mode":
        scale = 1.29 if options.mode_scale is None else options.mode_scale
        return 1 - u - scale * ((math.pi / 2 * u).cos().square() - 1 + u)
    return 1 - u


def level_weights(sigmas: Tensor, scheme: str) -> Tensor | None:
    """(b,) -> weights of the loss (b,), or None where the scheme has none."""
    if scheme == "sigma_sqrt":
        return sigmas**-2
    return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2)) if scheme == "cosmap" else None


class FlowBase(Base):
    """A base of flow matching. Its file says `predict`, with the help of `noised`."""

    component: ClassVar[str] = "transformer"
    takes = FLOW
    scheme: ClassVar[str] = "none"
    """The weighting scheme unless `--weighting_scheme` names one."""

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        super().__init__(pipeline, options)
        self.levels = pipeline.scheduler.config
        self.scheme_in_use = options.weighting_scheme or self.scheme

    @classmethod
    def check(cls, options: BaseOptions, configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().check(options, configs)
        scheduler, scheme = configs["scheduler"], options.weighting_scheme or cls.scheme
        if "FlowMatch" not in scheduler["_class_name"] and not scheduler.get("use_flow_sigmas"):
            raise ValueError(f"scheduler {scheduler['_class_name']}: this base is trained by flow matching, it is not")
        for name, owner in (("logit_mean", "logit_normal"), ("logit_std", "logit_normal"), ("mode_scale", "mode")):
            value = getattr(options, name)
            if value is not None and scheme != owner:
                raise ValueError(f"--{name} {value} is for --weighting_scheme {owner}, and this run's is {scheme}")

    def tokens(self, latents: Tensor) -> int:
        """Length of the sequence that the denoiser sees, by which the shift may grow: patches of 2 x 2."""
        return math.prod(latents.shape[2:]) // 4

    def shift(self, tokens: int) -> float:
        """Odds of noise are multiplied by this, as the scheduler does at this length of the sequence."""
        config = self.levels
        if not config.get("use_dynamic_shifting"):
            return config.get("shift") or config.get("flow_shift") or 1.0
        first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        mu = low + (high - low) * (tokens - first) / (last - first)
        return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu

    def sigmas(self, spread: Tensor, latents: Tensor) -> Tensor:
        """σ of samples, (b,) in fp64, for latents of this size."""
        raw = levels(spread, self.options, self.scheme_in_use).clamp(1 / self.count, 1)
        shift = self.shift(self.tokens(latents))
        sigmas = shift * raw / (1 + (shift - 1) * raw)
        terminal = self.levels.get("shift_terminal")
        return terminal + (1 - terminal) * sigmas if terminal else sigmas

    @property
    def count(self) -> int:
        """Timesteps of the scheduler at σ = 1."""
        return self.levels.get("num_train_timesteps", 1000)

    def spread_at(self, level: Tensor, latents: Tensor) -> Tensor:
        low, high = torch.zeros_like(level, dtype=torch.double), torch.ones_like(level, dtype=torch.double)
        for _ in range(40):  # σ falls where the spread rises
            middle = (low + high) / 2
            noisier = self.sigmas(middle, latents).to(middle.device) > level
            low, high = torch.where(noisier, middle, low), torch.where(noisier, high, middle)
        return low

    def noised(self, batch: Mapping[str, Tensor]) -> Noised:
        """The cached images of `batch` at its noise levels; timesteps are σ times the scheduler's count of them."""
        latents, noise = self.clean_and_noise(batch)
        sigmas = self.sigmas(batch["spread"], latents).float().to(latents.device)
        at = sigmas.view(-1, *[1] * (latents.dim() - 1))
        mixed, weights = (1 - at) * latents + at * noise, level_weights(sigmas, self.scheme_in_use)
        return Noised(mixed, sigmas * self.count, noise - latents, weights, latents, -sigmas)
