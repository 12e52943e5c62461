"""Discrete noise levels: the schedule of DDPM, for denoisers that predict the noise, the velocity or the latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from train.bases import Base, BaseOptions
from train.bases.latents import Noised
from train.bases.options import DISCRETE
from train.losses import min_snr_weights

KINDS = ("epsilon", "v_prediction", "sample")


class DiscreteBase(Base):
    """A base of discrete noise levels. Its file says `predict`, with the help of `noised`."""

    takes = DISCRETE

    def __init__(self, pipeline: Any, options: BaseOptions) -> None:
        super().__init__(pipeline, options)
        # The pipeline's own scheduler may be made for sampling alone; the noise levels of both are the same.
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.kind = self.noise.config.prediction_type

    @classmethod
    def check(cls, options: BaseOptions, configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().check(options, configs)
        scheduler = configs["scheduler"]
        place, kind = f"scheduler {scheduler['_class_name']}", scheduler.get("prediction_type", "epsilon")
        if "beta_schedule" not in scheduler or scheduler.get("use_flow_sigmas"):
            raise ValueError(f"{place}: this base is trained at the noise levels of DDPM, and it has no such levels")
        if kind not in KINDS:
            raise ValueError(f"{place}: prediction_type {kind!r} is not one of {', '.join(KINDS)}")

    def noised(self, batch: Mapping[str, Tensor]) -> Noised:
        """The cached images of `batch` at its noise levels."""
        latents, noise = self.clean_and_noise(batch)
        timesteps = (batch["spread"] * self.noise.config.num_train_timesteps).long().to(latents.device)
        noisy = self.noise.add_noise(latents, noise, timesteps)
        target = {"epsilon": noise, "sample": latents}.get(self.kind)
        if target is None:
            target = self.noise.get_velocity(latents, noise, timesteps)
        alphas = self.noise.alphas_cumprod.to(timesteps.device)[timesteps]
        sigmas = (1 - alphas).sqrt()
        gains = {"epsilon": -sigmas / alphas.sqrt(), "v_prediction": -sigmas, "sample": torch.ones_like(sigmas)}
        gamma = self.options.snr_gamma
        weights = None if gamma is None else min_snr_weights(alphas / (1 - alphas), gamma, self.kind)
        return Noised(noisy, timesteps, target, weights, latents, gains[self.kind])
