"""What diffusers offers that replaces, copies or fuses attention processors, as calls on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from tests.hosts import HOSTS, build, run

Event = Callable[[Any], None]


def fuse_qkv(model: Any) -> None:
    model.fuse_qkv_projections()


def fuse_and_unfuse_qkv(model: Any) -> None:
    model.fuse_qkv_projections()
    model.unfuse_qkv_projections()


def set_backend(model: Any) -> None:
    model.set_attention_backend("_native_math")


def set_and_reset_backend(model: Any) -> None:
    model.set_attention_backend("_native_math")
    model.reset_attention_backend()


def set_the_same_processors(model: Any) -> None:
    model.set_attn_processor(dict(model.attn_processors))


def slice_attention(model: Any) -> None:
    model.set_attention_slice("max")


def set_default_processors(model: Any) -> None:
    model.set_default_attn_processor()


def set_one_shared_processor(model: Any) -> None:
    model.set_attn_processor(AttnProcessor())


def ip_adapter_weights(tokens: int = 4, image_size: int = 6) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter for the tiny U-Net, as `load_ip_adapter` reads it from a file."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    widths = [8, 16, 8]  # of the cross-attentions in the order of `attn_processors`: down, up, middle
    bare: Any = build("unet_sd15")
    cross = [name for name in bare.attn_processors if "attn2" in name]
    widths = [bare.get_submodule(name.removesuffix(".processor")).to_k.out_features for name in cross]
    keys = {f"{2 * i + 1}.to_{part}_ip.weight": draw(width, 12) for i, width in enumerate(widths) for part in "kv"}
    project = {"proj.weight": draw(tokens * 12, image_size), "proj.bias": draw(tokens * 12)}
    project |= {"norm.weight": torch.ones(12), "norm.bias": torch.zeros(12)}
    return {"ip_adapter": keys, "image_proj": project}


def load_ip_adapter(model: Any) -> None:
    model._load_ip_adapter_weights([ip_adapter_weights()], low_cpu_mem_usage=False)


@contextmanager
def pretended_xformers() -> Iterator[None]:
    """xformers and a GPU, as far as `enable_xformers_memory_efficient_attention` and its processors look."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=settings.get("scale"))

    kernels = mock.Mock()
    kernels.ops.memory_efficient_attention = attend
    draw = torch.randn
    with (
        mock.patch.object(attention_processor, "xformers", kernels),
        mock.patch.object(attention_processor, "is_xformers_available", return_value=True),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch, "randn", lambda *args, device=None, **kwargs: draw(*args, **kwargs)),
    ):
        yield


UNET_EVENTS: list[Event] = [slice_attention, set_default_processors, set_one_shared_processor, load_ip_adapter]
COMMON_EVENTS: list[Event] = [
    fuse_qkv,
    fuse_and_unfuse_qkv,
    set_backend,
    set_and_reset_backend,
    set_the_same_processors,
]
CASES = [(host, event) for host in HOSTS[1:] for event in COMMON_EVENTS]
CASES += [("unet_sd15", event) for event in (*COMMON_EVENTS[:3], *UNET_EVENTS)]


def forward(model: nn.Module, host: str, grad: bool = False) -> Tensor:
    """As `run`, with a picture for the IP-Adapter if the model has one."""
    if getattr(model, "encoder_hid_proj", None) is None:
        return run(model, host, grad=grad)
    picture = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(5))
    plain = model.forward

    def with_picture(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, added_cond_kwargs={"image_embeds": [picture]}, **kwargs)

    with mock.patch.object(model, "forward", with_picture):
        return run(model, host, grad=grad)
