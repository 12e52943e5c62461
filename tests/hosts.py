"""Tiny models that carry an adapter of every family, and the same models with those adapters added to the weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from diffusion_adapters import FAMILIES, AdapterSet, add_adapter, set_adapters
from tests.denoisers import ZOO, build, run
from tests.tiny import save_pipeline

HOSTS = ("unet_sd15", "sd3", "flux")
"""One U-Net, one transformer of joint attention, one of packed tokens."""
HOST = "flux"
"""That of tests which need one of them."""
TOLERANCE = 1e-4
"""Of the effect of the adapters, in fp32: the same sums in another order."""
READS_NO_WEIGHT = [family for family in FAMILIES if not FAMILIES[family].reads_weight]
LEFT = np.zeros((8, 8), dtype=np.float32)
LEFT[:, :4] = 1
"""A mask."""


def small(family: str) -> dict[str, Any]:
    """Options of a family that fit the narrowest projection here."""
    found = {}
    for field in dataclasses.fields(FAMILIES[family].Config):
        if field.name == "rank":
            found["rank"] = 2
        elif isinstance(field.default, Mapping):  # of parts, each of a family
            found[field.name] = {name: {**part, **small(part["family"])} for name, part in field.default.items()}
    return found


def stir(values: Iterable[Tensor], seed: int = 2, strength: float = 0.2) -> None:
    """Change `values` as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in values:
            value.add_(torch.randn(value.shape, generator=generator).to(value), alpha=strength)


def adapt(model: Any, families: Iterable[str] | None = None, **options: Any) -> AdapterSet:
    """Attach one stirred adapter per family, each of its own weight, under the family's name."""
    names = list(families if families is not None else FAMILIES)
    torch.manual_seed(0)
    for family in names:
        adapter_set = add_adapter(model, family, family, **{**small(family), **options})
    stir(adapter_set.parameters())
    set_adapters(model, names, [0.9 - 0.2 * i for i in range(len(names))])
    return adapter_set


def merge(bare: nn.Module, adapter_set: AdapterSet) -> nn.Module:
    """Add the active adapters to the weights of `bare`, a model of the same base without adapters."""
    with torch.no_grad():
        for path in adapter_set.projections():
            weight = bare.get_submodule(path).weight
            active = [(adapter_set.of(name).get(path), factor) for name, factor in adapter_set.weights.items()]
            weight += sum(factor * adapter.delta_weight(weight) for adapter, factor in active if adapter is not None)
    return bare


def distance(got: Tensor, wanted: Tensor, base: Tensor) -> float:
    """How far `got` is from `wanted`, as a part of how far `wanted` is from `base`."""
    effect = float((wanted - base).norm())
    assert effect > 1e-3 * float(base.norm()), "the adapters have no effect to be measured against"
    return float((got - wanted).norm()) / effect


@cache
def pipeline_folder(seed: int = 0) -> Path:
    """Where `pipeline(seed)` is stored."""
    return save_pipeline(Path(mkdtemp(prefix="tiny-pipeline-")) / f"pipeline{seed}", seed=seed)


@cache
def _pipeline(seed: int) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder(seed), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """A tiny random StableDiffusionPipeline."""
    return copy.deepcopy(_pipeline(seed))


@contextmanager
def inputs_in(dtype: torch.dtype) -> Iterator[None]:
    """Normal tensors are drawn as ever, then rounded to `dtype`."""
    draw = torch.randn
    with mock.patch.object(torch, "randn", lambda *args, **kwargs: draw(*args, **kwargs).to(dtype)):
        yield


def sample(pipe: Any, steps: int = 2, **settings: Any) -> Tensor:
    """Latents that the pipeline draws for one prompt and seed."""
    generator = torch.Generator().manual_seed(0)
    settings = {"output_type": "latent", "num_inference_steps": steps, "generator": generator, **settings}
    return pipe("a red cat", **settings).images


def call(model: Any, host: str, **changes: Any) -> Tensor:
    """The output of a host for its usual input, the batch in front."""
    torch.manual_seed(1)
    inputs = ZOO[host].inputs(model)
    with torch.no_grad():
        return model(**{**inputs, **changes}).sample


def two(host: str, **options: Any) -> Any:
    """A host with two stirred LoRA adapters, a and b."""
    model = build(host)
    for seed, name in enumerate("ab"):
        own = add_adapter(model, name, "lora", rank=2, **options)
        stir((v for adapter in own.of(name).values() for v in adapter.parameters()), seed=seed)
    return model


def gradients_of(model: Any, host: str, adapter_set: nn.Module) -> list[Tensor]:
    """Gradients of every number of the adapters, of a loss of the output."""
    adapter_set.zero_grad()
    run(model, host, grad=True).square().mean().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in adapter_set.parameters()]


def one_and_two(model: Any) -> AdapterSet:
    """Adapters `one` and `two` with an effect."""
    add_adapter(model, "one", rank=2)
    adapter_set = add_adapter(model, "two", rank=1)
    stir(adapter_set.parameters())
    return adapter_set


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same_bits(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(value.view(torch.uint8), before[key].view(torch.uint8)) for key, value in bits(model).items()
    )


__all__ = ["HOST", "HOSTS", "LEFT", "READS_NO_WEIGHT", "TOLERANCE", "adapt", "bits", "build", "call", "distance"]
__all__ += ["gradients_of", "inputs_in", "merge", "one_and_two", "pipeline", "pipeline_folder", "run", "same_bits"]
__all__ += ["sample", "small", "stir", "two"]
