"""What one step minimizes: the denoising loss of the pictures, and what keeps the model as it was elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_adapters import AdapterSet
from diffusion_adapters.options import option
from train.bases import Base
from train.data import PriorOptions
from train.losses import FROZEN, LOSSES, Prediction, masked_mean, pointwise


@dataclass(frozen=True, kw_only=True)
class LossOptions(PriorOptions):
    title: ClassVar[str] = "loss and prior preservation"
    loss_type: str = option("l2", "error of the prediction, square or bounded for outliers", choices=LOSSES)
    huber_c: float = option(0.1, "where huber and smooth_l1 turn from square to linear", gt=0)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """(base, denoiser, adapters, batch) -> (loss, its parts by name). Pure: equal batches give equal losses.

    Rows of the batch that `batch["prior"]` (b,) marks are there for prior preservation: they are class images with
    the class prompt, or, with `teacher`, the instance pictures with the class prompt, whose target is what the frozen
    base predicts for the same noisy latents. The loss is

        mean over instance rows of w Σ m (prediction − target)² / Σ m
        + prior_loss_weight × mean over prior rows of w (prediction − target)²
        + masked_prior_weight × mean over instance rows of w Σ (1 − mask) (prediction − frozen)² / Σ (1 − mask)
        + the adapters' penalties

    with w the weight of the noise level times `batch["loss_weight"]` (b,), m = unmasked_weight + (1 − unmasked_weight)
    mask for `batch["mask"]` (b, 1, h, w), and the square replaced by what `loss_type` says.
    """

    loss_type: str = "l2"
    huber_c: float = 0.1
    prior_loss_weight: float = 1.0
    teacher: bool = False
    unmasked_weight: float = 0.0
    masked_prior_weight: float = 0.0

    @classmethod
    def of(cls, config: Any) -> Objective:
        """What the options of a run say."""
        taken = {
            field.name: getattr(config, field.name) for field in dataclasses.fields(cls) if field.name != "teacher"
        }
        return cls(teacher=config.with_prior_preservation and config.prior_source == "teacher", **taken)

    def __call__(
        self, base: Base, denoiser: nn.Module, adapters: AdapterSet, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        prior: Tensor = batch.get("prior", torch.zeros(len(batch["seeds"]), dtype=torch.bool)).cpu()
        mask = batch.get("mask") if self.masked_prior_weight else None
        asked = (prior & self.teacher) | (~prior & (mask is not None))
        # Before the forward that is differentiated: gradient checkpointing repeats that one in backward, adapters on.
        frozen = predict_frozen(base, denoiser, adapters, batch, asked) if asked.any() else None
        made = base.predict(denoiser, batch)
        prior, asked = prior.to(made.prediction.device), asked.to(made.prediction.device)
        target, weights = made.target.float(), self._weights(made, batch)
        if frozen is not None and self.teacher:
            target = torch.where(_like(prior, target), _spread(frozen, asked, target), target)
        own = masked_mean(self._error(made.prediction, target), self._inside(batch))
        parts = {"loss_instance": _mean(own * weights, ~prior)}
        if prior.any():
            whole = masked_mean(self._error(made.prediction, target)) if "mask" in batch else own
            parts["loss_prior"] = self.prior_loss_weight * _mean(whole * weights, prior)
        if mask is not None and frozen is not None:
            outside = self._error(made.prediction, _spread(frozen, asked, target))
            parts["loss_outside"] = self.masked_prior_weight * _mean(masked_mean(outside, 1 - mask) * weights, ~prior)
        penalties = [p for adapter in adapters.everyone() if (p := adapter.penalty()) is not None]
        if penalties:
            parts["penalty"] = torch.stack([penalty.to(target.device) for penalty in penalties]).sum()
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}

    def _error(self, prediction: Tensor, target: Tensor) -> Tensor:
        return pointwise(prediction, target, self.loss_type, self.huber_c)

    def _weights(self, made: Prediction, batch: Mapping[str, Tensor]) -> Tensor:
        ones = torch.ones(len(made.prediction), device=made.prediction.device)
        return (ones if made.weights is None else made.weights) * batch.get("loss_weight", ones)

    def _inside(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        mask = batch.get("mask")
        return None if mask is None else self.unmasked_weight + (1 - self.unmasked_weight) * mask


@torch.no_grad()
def predict_frozen(
    base: Base, denoiser: nn.Module, adapters: AdapterSet, batch: Mapping[str, Any], rows: Tensor
) -> Tensor:
    """What the base without adapters predicts for the `rows` (b,) of a batch: the same noise, level and prompt."""
    told = {**batch, **{name.removeprefix(FROZEN): value for name, value in batch.items() if name.startswith(FROZEN)}}
    chosen = rows.nonzero().squeeze(1)
    part = told if rows.all() else {name: value[chosen.to(value.device)] for name, value in told.items()}
    with adapters.bypassed():
        return base.predict(denoiser, part).prediction.float()


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of the values of `rows`, without reading on the host how many they are."""
    return (values * rows).sum() / rows.sum().clamp(min=1)


def _like(rows: Tensor, other: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (other.dim() - 1))


def _spread(values: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """`values` of the marked rows at their places in a tensor like `like`, zeros elsewhere."""
    return torch.zeros_like(like).masked_scatter(_like(rows, like), values)
