"""A denoiser in 8 or 4 bit: it is only read, and adapters never look at its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

PACKAGES: Mapping[str, tuple[str, bool]] = {  # name -> (package, whether it needs a GPU)
    "bnb8": ("bitsandbytes", True),
    "bnb4": ("bitsandbytes", True),
    "torchao_int8": ("torchao", False),
    "torchao_int4": ("torchao", True),
    "torchao_float8": ("torchao", True),
}


def check(name: str, device: torch.device) -> None:
    """Raise ValueError if weights cannot be quantized as `name` says on this device, with what is missing."""
    package, gpu = PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"--quantization {name} needs the package {package}: pip install {package}")
    if gpu and device.type == "cpu":
        free = ", ".join(other for other, (_, needs) in PACKAGES.items() if not needs)
        raise ValueError(f"--quantization {name} needs a GPU, and this run is on the CPU; use {free}, or leave it out")


def settings(name: str, component: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` of a pipeline is given so that `component` alone is quantized; `dtype` to compute in."""
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig

    if name == "bnb8":
        config: Any = BitsAndBytesConfig(load_in_8bit=True)
    elif name == "bnb4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        import torchao.quantization as ao

        kinds = {"int8": "Int8WeightOnlyConfig", "int4": "Int4WeightOnlyConfig", "float8": "Float8WeightOnlyConfig"}
        config = TorchAoConfig(getattr(ao, kinds[name.removeprefix("torchao_")])())
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping={component: config})}
