"""One run on several processes: every one has the adapters whole, and a copy or a share of the frozen base.

The adapters are small, so their gradients are averaged by one reduction per step, whatever is done to the base: nothing
(one process), a copy on each device, or FSDP or DeepSpeed, which shard it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, DynamoBackend, GradientAccumulationPlugin, broadcast, patch_environment
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn

from train import zero
from train.settings import TrainOptions


def make_accelerator(options: TrainOptions) -> Accelerator:
    """The accelerator of a run: device and processes as `accelerate launch` says. Raises ValueError."""
    AcceleratorState._reset_state()  # of a run before in this process, whose precision it would keep
    precision = options.mixed_precision
    whole_steps = GradientAccumulationPlugin(num_steps=1)  # the loop adds up gradients itself
    deepspeed = zero.asked_for()
    try:
        with patch_environment(ACCELERATE_USE_DEEPSPEED="false"):  # it would take the optimizer too
            accelerator: Any = Accelerator(mixed_precision=precision, gradient_accumulation_plugin=whole_steps)
    except ValueError as error:
        raise ValueError(f"--mixed_precision {precision}: {error}") from None
    refused = {"cpu": "fp16", "mps": "bf16"}.get(accelerator.device.type)
    if accelerator.mixed_precision == refused:
        raise ValueError(f"--mixed_precision {refused} does not work on {accelerator.device.type}; use another, or no")
    kind = accelerator.distributed_type
    accelerator.zero = deepspeed
    if kind == DistributedType.MEGATRON_LM:
        raise ValueError(f"accelerate launch with {kind.value}: use train/configs/accelerate/fsdp.yaml to share a base")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("accelerate launch with FSDP 1: set fsdp_version: 2, as train/configs/accelerate/fsdp.yaml")
    return accelerator


def spread(accelerator: Accelerator, denoiser: nn.Module, trained: Sequence[Tensor]) -> None:
    """Make what is `trained` equal on all processes; shard the denoiser, or compile it, if the launcher says so.

    After it a forward of the denoiser needs every process if `sharded`.
    """
    if accelerator.num_processes > 1:
        for value in trained:
            value.data.copy_(broadcast(value.detach()))
    if sharded(accelerator):
        if (plugin := getattr(accelerator, "zero", None)) is not None:
            zero.share(denoiser, plugin)
        else:
            fsdp2_prepare_model(accelerator, denoiser)
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend != DynamoBackend.NO:
        denoiser.compile(**plugin.to_kwargs())


def sharded(accelerator: Accelerator) -> bool:
    """Whether each process has but a share of the base."""
    return accelerator.distributed_type == DistributedType.FSDP or zero.partial(getattr(accelerator, "zero", None))


@torch.no_grad()
def average_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of the gradients of all, by one reduction."""
    if accelerator.num_processes == 1:
        return
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat: Tensor = accelerator.reduce(torch.cat([gradient.flatten() for gradient in own]), "mean")
    parts = flat.split([gradient.numel() for gradient in own])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
