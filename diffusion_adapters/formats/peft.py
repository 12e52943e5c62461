"""Files of PEFT: `base_model.model.` and the path of the layer; the scale stands in `adapter_config.json` beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .dialect import DENOISER, DIALECTS, Dialect, Settings

PREFIX = "base_model.model."
CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20


@DIALECTS.register("peft")
class Peft(Dialect):
    """PEFT, a model saved by its own save_pretrained"""

    @staticmethod
    def place(module: str) -> tuple[str, str] | None:
        return (DENOISER, module.removeprefix(PREFIX)) if module.startswith(PREFIX) else None

    @staticmethod
    def settings(path: Path, metadata: Mapping[str, str]) -> Settings:
        beside = path.with_name(CONFIG)
        if not beside.is_file():
            raise ValueError(f"its scale stands in {CONFIG}, which is not beside it; put it there")
        if beside.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{CONFIG} beside it is larger than {MAX_CONFIG_BYTES} bytes")
        try:
            config = dict(json.loads(beside.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{CONFIG} beside it is damaged: {error}") from error
        return lambda component, module: layer_settings(config, module)


def layer_settings(config: Mapping[str, Any], module: str) -> dict[str, Any]:
    """What a PEFT configuration says of one layer; `scale` is what its product is multiplied by, if it says so.

    Raises ValueError for a start that changes the base, without which the adapter means nothing.
    """
    start = config.get("init_lora_weights")
    if isinstance(start, str) and re.match(r"pissa|olora|corda|loftq|lora_ga", start):
        raise ValueError(f"init_lora_weights={start!r} changes the weights of the base; convert it to a plain LoRA")
    rank, alpha = config.get("r"), config.get("lora_alpha", config.get("alpha"))
    rank = _of(config.get("rank_pattern"), module, rank)
    alpha = _of(config.get("alpha_pattern"), module, alpha)
    found = {key: value for key, value in config.items() if not isinstance(value, (dict, list))}
    if alpha is None or not rank:
        return found
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in (rank, alpha)) or rank < 1:
        raise ValueError(f"r and alpha of its configuration must be numbers, got {rank!r} and {alpha!r}")
    return {**found, "scale": alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank}


def _of(pattern: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that is the module's path or its end."""
    for key, value in (pattern or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error:
            continue
    return default
