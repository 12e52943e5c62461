"""DeepSpeed: by ZeRO 3 each process keeps a share of the frozen base, in its own memory or in that of the CPU.

What is trained stays whole on every process, as everywhere here, and so do its gradients and the optimizer's state:
the few MiB that ZeRO 1 and 2 would share. With those a run is one with a copy of the base on each device.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from accelerate.utils import DeepSpeedPlugin, is_deepspeed_available
from torch import nn

LOG = logging.getLogger("train")


def asked_for() -> DeepSpeedPlugin | None:
    """What accelerate's launcher was told of DeepSpeed; None if nothing. Raises ValueError if it is not installed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        return None
    if not is_deepspeed_available():
        raise ValueError("accelerate launch with DeepSpeed needs the package deepspeed: pip install deepspeed")
    return DeepSpeedPlugin(zero3_init_flag=False)  # which would share text encoders and VAE too


def share(denoiser: nn.Module, plugin: DeepSpeedPlugin) -> None:
    """Take from this process all but its share of the denoiser; its forward and backward then fetch the rest."""
    import deepspeed

    kind = next(denoiser.parameters()).dtype
    told = {name: value for name, value in plugin.deepspeed_config["zero_optimization"].items() if value != "auto"}
    told.pop("offload_optimizer", None)  # there is none in its hands
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": told,
        "bf16": {"enabled": kind == torch.bfloat16},
        "fp16": {"enabled": kind == torch.float16},
    }
    deepspeed.initialize(model=denoiser, config=config)


def partial(plugin: DeepSpeedPlugin | None) -> bool:
    """Whether each process has but a share of the base."""
    return plugin is not None and plugin.zero_stage == 3
