"""Files of diffusers, new and old: component and path of the layer, with dots."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .dialect import DIALECTS, Dialect, Settings
from .peft import layer_settings

COMPONENTS = ("unet", "transformer", "transformer_2", "prior", "text_encoder", "text_encoder_2", "text_encoder_3")
METADATA = "lora_adapter_metadata"
OLD = re.compile(r"(.+)\.processor\.(\w+)_lora")
OLD_TEXT = re.compile(r"(.+\.self_attn)\.to_(\w+)_lora")


@DIALECTS.register("diffusers")
class Diffusers(Dialect):
    """diffusers, and programs that follow it, like ai-toolkit"""

    @staticmethod
    def place(module: str) -> tuple[str, str] | None:
        component, _, path = module.partition(".")
        return (component, modern(path)) if component in COMPONENTS and path else None

    @staticmethod
    def settings(path: Path, metadata: Mapping[str, str]) -> Settings:
        if METADATA not in metadata:
            return Dialect.settings(path, metadata)
        try:
            given = json.loads(metadata[METADATA])
            own: dict[str, dict[str, Any]] = {component: {} for component in COMPONENTS}
            for key, value in given.items():
                component, _, name = key.partition(".")
                own.get(component, {})[name] = value
        except (ValueError, AttributeError) as error:
            raise ValueError(f"its header entry {METADATA!r} is damaged: {error}") from error
        return lambda component, module: layer_settings(own.get(component, {}), module)


def modern(path: str) -> str:
    """The path of the layer, where an old file names a part of its processor."""
    old, text = OLD.fullmatch(path), OLD_TEXT.fullmatch(path)
    if old is not None:
        return f"{old[1]}.{old[2]}{'.0' if old[2].endswith('_out') and old[2] != 'to_add_out' else ''}"
    return f"{text[1]}.{text[2]}_proj" if text is not None else path
