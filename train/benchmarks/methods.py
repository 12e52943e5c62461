"""The ways to adapt a UNet that are compared: our families, PEFT's tuners, LyCORIS, on the same targets."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_adapters import FAMILIES, Adapter, AdapterSet, add_adapter
from train.engine import optimizer_groups

Groups = list[dict[str, Any]]

REFERENCE = "PEFT LoRA"
"""What the others are compared with."""


@dataclass(frozen=True)
class Method:
    """One way to adapt a UNet."""

    settings: str
    adapt: Callable[[Any], Groups]
    """Adapts all attention projections of a UNet; returns what its optimizer trains."""


def methods(rank: int) -> dict[str, Method]:
    """Name -> method. `rank`: that of PEFT's LoRA, by whose count of trained values ours are chosen."""
    found: dict[str, Method] = {}
    for family in FAMILIES:
        settings = comparable(FAMILIES[family], rank)
        found[family] = Method(" ".join(f"{k} {v}" for k, v in settings.items()), partial(_ours, family, settings))
    for name, tuner, shown, settings in (
        (REFERENCE, "LoraConfig", f"rank {rank}", {"r": rank, "lora_alpha": rank}),
        ("PEFT LoKr", "LoKrConfig", f"rank {rank}", {"r": rank, "alpha": rank}),
        ("PEFT OFT", "OFTConfig", "blocks of 32", {"oft_block_size": 32}),
        ("PEFT WaveFT", "WaveFTConfig", "2592 values", {"n_frequency": 2592}),
    ):
        found[name] = Method(shown, partial(_peft, tuner, settings))
    if importlib.util.find_spec("lycoris"):
        for name in ("LyCORIS LoRA", "LyCORIS LoHa", "LyCORIS LoKr"):
            found[name] = Method(f"rank {rank}", partial(_lycoris, name.split()[1].lower(), rank))
    return found


def comparable(family: type[Adapter], rank: int) -> dict[str, int]:
    """The default rank of a family, or `rank` if that is more, as far as it trains no more than LoRA of `rank` does.

    A tenth more is allowed, for what stands beside a LoRA of the same rank.
    """
    weight = torch.empty(640, 640, device="meta")
    highest = max(getattr(family.Config(), "rank", 0), rank)
    for own in range(highest, 0, -1) if "rank" in family.Config.kinds() else ():
        trained = sum(value.numel() for value in family(weight, family.Config(rank=own)).parameters())
        if trained <= 1.1 * rank * sum(weight.shape):
            return {"rank": own}
    return {}


def targets(unet: Any) -> list[str]:
    """Paths of the linear projections of every attention."""
    return list(AdapterSet(unet).projections())


def _ours(family: str, settings: dict[str, Any], unet: Any) -> Groups:
    adapters = add_adapter(unet, "a", family, **settings)
    return optimizer_groups(adapters.everyone(), 1e-4)


def _peft(name: str, settings: dict[str, Any], unet: Any) -> Groups:
    import peft

    config = getattr(peft, name)(target_modules=targets(unet), **settings)
    peft.inject_adapter_in_model(config, unet, "a")
    return _group(value for value in unet.parameters() if value.requires_grad)


def _lycoris(algorithm: str, rank: int, unet: Any) -> Groups:
    from lycoris import LycorisNetwork, create_lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    LycorisNetwork.apply_preset({"target_module": ["Attention"], "target_name": [], "enable_conv": False})
    network = create_lycoris(unet, 1.0, linear_dim=rank, linear_alpha=rank, algo=algorithm)
    network.apply_to()
    if len(network.loras) != len(targets(unet)):
        raise RuntimeError(f"LyCORIS adapted {len(network.loras)} projections of {len(targets(unet))}")
    unet.lycoris = network  # which its UNet does not keep alive, nor move
    return _group(network.parameters())


def _group(values: Iterable[Tensor]) -> Groups:
    """One group in fp32, as the training scripts of diffusers do."""
    values = list(values)
    for value in values:
        value.data = value.data.float()
    return [{"params": values, "lr": 1e-4}]
