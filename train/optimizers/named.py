"""The optimizers known by name, each with the settings that the flags give it."""

from __future__ import annotations

from typing import Any

from train.optimizers import OPTIMIZERS, Kind, OptimizerOptions


def adam(options: OptimizerOptions) -> dict[str, Any]:
    """Betas, epsilon and weight decay, as Adam and what descends from it call them."""
    betas = (options.adam_beta1, options.adam_beta2)
    return {"betas": betas, "eps": options.adam_epsilon, "weight_decay": options.adam_weight_decay}


def fused_adam(options: OptimizerOptions) -> dict[str, Any]:
    """Adam's settings, and one launch for all parameters instead of ten for each."""
    return adam(options) | {"fused": True}


def prodigy(options: OptimizerOptions) -> dict[str, Any]:
    """Adam's settings and Prodigy's own."""
    own = ("beta3", "decouple", "use_bias_correction", "safeguard_warmup")
    return adam(options) | {name: getattr(options, f"prodigy_{name}") for name in own}


def decay(options: OptimizerOptions) -> dict[str, Any]:
    """Weight decay alone."""
    return {"weight_decay": options.adam_weight_decay}


OPTIMIZERS.register("adamw")(Kind("torch.optim.AdamW", settings=fused_adam))
OPTIMIZERS.register("adamw_8bit", "adamw8bit")(Kind("bitsandbytes.optim.AdamW8bit", "bitsandbytes", adam))
OPTIMIZERS.register("prodigy")(Kind("prodigyopt.Prodigy", "prodigyopt", prodigy, learning_rate=1.0, one_rate=True))
OPTIMIZERS.register("adafactor")(Kind("torch.optim.Adafactor", settings=decay))
OPTIMIZERS.register("schedule_free", "schedulefree")(
    Kind("schedulefree.AdamWScheduleFree", "schedulefree", adam, averages=True)
)
