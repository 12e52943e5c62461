"""What other programs read off a file's header: ModelSpec 1.0.1, and the `ss_` keys of kohya's scripts. Strings alone.

Nothing here tells where a file was made: no path, no host, no user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from torch import nn

from .adapter import AdapterInfo

ARCHITECTURES = {  # class of the denoiser -> (name of ModelSpec, ss_base_model_version of kohya)
    "SD3Transformer2DModel": ("stable-diffusion-3-medium", "sd3"),
    "FluxTransformer2DModel": ("flux-1-dev", "flux1"),
    "Lumina2Transformer2DModel": ("lumina-2", "lumina2"),
    "ChromaTransformer2DModel": ("chroma", "chroma"),
}
UNETS = {  # width of the text embeddings -> the same, of Stable Diffusion's UNets
    768: ("stable-diffusion-v1", "sd_v1"),
    1024: ("stable-diffusion-v2", "sd_v2"),
    2048: ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}


def architecture(denoiser: nn.Module) -> tuple[str, str]:
    """The names of a denoiser's architecture in ModelSpec and in kohya's scripts; its class where they have none."""
    name = type(denoiser).__name__
    width = getattr(getattr(denoiser, "config", None), "cross_attention_dim", None)
    if name == "UNet2DConditionModel" and width in UNETS:
        return UNETS[width]
    return ARCHITECTURES.get(name, (name, name))


def labels(info: AdapterInfo, base: Mapping[str, Any], name: str, lora_rank: int | None = None) -> dict[str, str]:
    """The entries for a file of the adapter `name`; `base` is what `file.describe_base` says.

    `lora_rank`: the largest rank of a file that holds the adapter as a plain LoRA, whose alpha is its rank.
    """
    spec, kohya = base["architecture"]
    config, training = info.config.as_dict(), info.training
    rank, alpha = config.get("rank", 1), config.get("alpha", 1.0)
    kind, module = info.family, f"diffusion_adapters.{info.family}"
    if lora_rank is not None:
        module, rank, alpha = "networks.lora", lora_rank, float(lora_rank)  # kohya's module of plain LoRA
        kind = module.rpartition(".")[2]
    found: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{spec}/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.resolution": training.get("resolution", "unknown"),
        "modelspec.trigger_phrase": info.trigger,
        "ss_base_model_version": kohya,
        "ss_network_module": module,
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"family": info.family, **config}),
        "ss_output_name": name,
        "ss_sd_model_name": base["name"] or None,
        "ss_v2": kohya == "sd_v2",
        "ss_resolution": training.get("resolution") and f"({training['resolution']}, {training['resolution']})",
        "ss_num_train_images": training.get("pictures"),
        "ss_steps": training.get("steps"),
        "ss_seed": training.get("seed"),
        "ss_learning_rate": training.get("learning_rate"),
        "ss_batch_size_per_device": training.get("train_batch_size"),
    }
    if info.trigger:
        found["ss_tag_frequency"] = json.dumps({"dreambooth": {info.trigger: training.get("pictures", 1)}})
    return {key: str(value) for key, value in found.items() if value is not None}


def hashes(data: bytes) -> dict[str, str]:
    """How browsers know a file again whatever its header says: SHA-256 of the tensors of a safetensors file."""
    start = 8 + int.from_bytes(data[:8], "little")
    digest = hashlib.sha256(memoryview(data)[start:]).hexdigest()
    return {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
