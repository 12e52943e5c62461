"""Adapters that live in the attention processors of diffusers: train, load, blend, fuse and export them."""

from .active import (
    disable_adapters,
    enable_adapters,
    get_active_adapters,
    set_adapters,
    use_adapters,
)
from .adapter import FAMILIES, Adapter, AdapterConfig, AdapterInfo
from .adapter_set import AdapterSet
from .attach import (
    add_adapter,
    coverage,
    delete_adapters,
    fuse_adapters,
    list_adapters,
    unfuse_adapters,
)
from .bake import bake
from .compose import compose_adapters
from .doctor import inspect_adapter
from .export import export_lora
from .merge import MERGERS, merge_adapters
from .options import option
from .prompt import parse_prompt
from .report import AdapterReport
from .shelf import AdapterShelf, set_adapter_device
from .slots import release_slots, reserve_slots
from .store import load_adapter, save_adapter
from .text import add_text_adapter
from .tokens import add_tokens
from .weight import AdapterWeight

__all__ = [
    "FAMILIES",
    "MERGERS",
    "Adapter",
    "AdapterConfig",
    "AdapterInfo",
    "AdapterReport",
    "AdapterSet",
    "AdapterShelf",
    "AdapterWeight",
    "add_adapter",
    "add_text_adapter",
    "add_tokens",
    "bake",
    "compose_adapters",
    "coverage",
    "delete_adapters",
    "disable_adapters",
    "enable_adapters",
    "export_lora",
    "fuse_adapters",
    "get_active_adapters",
    "inspect_adapter",
    "list_adapters",
    "load_adapter",
    "merge_adapters",
    "option",
    "parse_prompt",
    "release_slots",
    "reserve_slots",
    "save_adapter",
    "set_adapter_device",
    "set_adapters",
    "unfuse_adapters",
    "use_adapters",
]
