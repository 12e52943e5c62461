"""What a forward holds for its backward at any size: counted on tensors without numbers, in seconds on any machine."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusion_adapters.hooks import find_adapter_set
from train.benchmarks import models
from train.benchmarks.measure import own_values, saved_bytes
from train.benchmarks.methods import Method


def held(method: Method, preset: str, batch: int, side: int | None) -> dict[str, Any]:
    """`trained` values, bytes `saved` for the backward, and `held` with what adapters and AdamW have, without the UNet.

    Exact: the same kernels' rules say what they save as on a CPU.
    """
    unet = models.unet(preset, "meta")
    frozen = sum(value.nbytes for value in unet.parameters())
    method.adapt(unet)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (unet, find_adapter_set(unet)):
            if module is not None:
                module.to_empty(device="cpu")
        arguments, extra = models.inputs(unet, batch, side)
        own = list(own_values(unet))

        def loss() -> torch.Tensor:
            return unet(*arguments, **extra, return_dict=False)[0].square().mean()

        saved = saved_bytes(loss, own)
    trained = sum(value.numel() for value in own if value.requires_grad)
    sizes = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in own}
    return {
        "settings": method.settings,
        "trained": trained,
        "saved": saved,
        "held": saved + sum(sizes.values()) - frozen + 2 * 4 * trained,
    }
