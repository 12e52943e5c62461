"""The ways to adapt a UNet that are compared: our families, PEFT's tuners, LyCORIS, on the same targets."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    """Name -> method. LoRA, and what is added beside it by `transformed_lora`, has `rank`.

    WaRA has the rank that gives as many trained values as LoRA has; the others are as they come.
    """
    ranks = {"lora": rank, "transformed_lora": rank, "wara": -(-rank // 2)}
    found: dict[str, Method] = {}
    for family in FAMILIES:
        settings = {"rank": ranks[family]} if family in ranks else {}
        shown = settings or {"rank": getattr(FAMILIES[family].Config(), "rank", None)}
        found[family] = Method(f"rank {shown['rank']}", partial(_ours, family, settings))
    for name, shown, settings in (
        ("LoRA", f"rank {rank}", {"r": rank, "lora_alpha": rank}),
        ("LoKr", f"rank {rank}", {"r": rank, "alpha": rank}),
        ("OFT", "blocks of 32", {"oft_block_size": 32}),
        ("WaveFT", "2592 values", {"n_frequency": 2592}),
    ):
        found[f"PEFT {name}"] = Method(shown, partial(_peft, {"LoRA": "Lora"}.get(name, name), settings))
    if importlib.util.find_spec("lycoris"):
        for name, algorithm in (("LoRA", "lora"), ("LoHa", "loha"), ("LoKr", "lokr")):
            found[f"LyCORIS {name}"] = Method(f"rank {rank}", partial(_lycoris, algorithm, rank))
    return found


def targets(unet: Any) -> list[str]:
    """Paths of the linear projections of every attention."""
    return list(AdapterSet(unet).projections())


def _ours(family: str, settings: dict[str, Any], unet: Any) -> Groups:
    adapters = add_adapter(unet, "a", family, **settings)
    return optimizer_groups([m for m in adapters.modules() if isinstance(m, Adapter)], 1e-4)


def _peft(name: str, settings: dict[str, Any], unet: Any) -> Groups:
    import peft

    config = getattr(peft, f"{name}Config")(target_modules=targets(unet), **settings)
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
