"""A zoo of tiny random denoisers: every diffusers class that attends through processors.

`ZOO` names the configurations, `build` makes one, `run` gives its output as one vector. `NOT_BUILT` says of
every other class why it is not here; together they are `attending_classes()`, so that a new class is noticed.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from .images import IMAGES
from .others import OTHERS
from .packed import PACKED_IMAGES
from .rows import Denoiser
from .unets import UNETS
from .videos import VIDEOS
from .wan import WANS

KINDS = {
    "UNets": UNETS,
    "Image transformers": [*PACKED_IMAGES, *IMAGES],
    "Video transformers": [*WANS, *VIDEOS],
    "Audio and other": OTHERS,
}
ZOO: dict[str, Denoiser] = {row.name: row for rows in KINDS.values() for row in rows}

_SEVERAL = "a list of ControlNets: adapters go to each of them"
_PART = "has no forward pass of its own: its blocks run inside {}"
_PROMPT = "turns the prompt into conditions; denoises nothing"
NOT_BUILT: dict[str, str] = {
    "UNet1DModel": "attends without processors",
    "MotionAdapter": _PART.format("UNetMotionModel"),
    "ControlNetXSAdapter": _PART.format("UNetControlNetXSModel"),
    "MultiControlNetModel": _SEVERAL,
    "MultiControlNetUnionModel": _SEVERAL,
    "FluxMultiControlNetModel": _SEVERAL,
    "HunyuanDiT2DMultiControlNetModel": _SEVERAL,
    "QwenImageMultiControlNetModel": _SEVERAL,
    "SD3MultiControlNetModel": _SEVERAL,
    "AnimaTextConditioner": _PROMPT,
    "AceStepAudioTokenDetokenizer": _PROMPT,
    "AceStepAudioTokenizer": _PROMPT,
    "AceStepConditionEncoder": _PROMPT,
    "AceStepLyricEncoder": _PROMPT,
    "AceStepTimbreEncoder": _PROMPT,
    "AudioLDM2ProjectionModel": _PROMPT,
    "LTX2TextConnectors": _PROMPT,
    "LTX2DurationHead": _PROMPT,
}

_FOLDERS = ("models/unets", "models/transformers", "models/controlnets", "models/condition_embedders", "pipelines")
"""Folders of diffusers that hold denoisers. Autoencoders live elsewhere; what is deprecated is left alone."""
_ATTENDS = re.compile(r"set_processor|AttentionModuleMixin|attn_processors|Attention\b|TransformerBlock|get_\w+_block")


@cache
def attending_classes() -> dict[str, str]:
    """Every model class of the installed diffusers whose file speaks of attention, and its module."""
    root = Path(diffusers.__file__).parent
    found = dict.fromkeys(("ModelMixin", "LegacyModelMixin"), "")
    files = sorted(
        file for folder in _FOLDERS for file in (root / folder).rglob("*.py") if "deprecated" not in file.parts
    )
    for file in files:
        source = file.read_text(encoding="utf-8")
        module = ".".join(["diffusers", *file.relative_to(root).with_suffix("").parts])
        for node in ast.parse(source).body if _ATTENDS.search(source) else []:
            bases = {ast.unparse(base).split(".")[-1] for base in getattr(node, "bases", [])}
            if isinstance(node, ast.ClassDef) and bases & found.keys():
                found[node.name] = module
    return {name: module for name, module in found.items() if module}


def missing(name: str) -> str:
    """The package that a row needs and that is not installed, or ""."""
    needs = ZOO[name].needs
    return needs if needs and importlib.util.find_spec(needs) is None else ""


def build(name: str, seed: int = 0) -> nn.Module:
    """The denoiser of a row, in evaluation mode, every parameter drawn anew from `seed`."""
    row = ZOO[name]
    cls = getattr(importlib.import_module(attending_classes()[row.cls]), row.cls)
    model: nn.Module = cls(**row.config)
    if row.prepare:
        row.prepare(model)
    redraw(model, seed)
    return model.eval()


def redraw(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew: training starts many layers at zero, behind which an adapter would not be seen.

    Matrices keep the variance of what they multiply, gains stay near 1, other vectors near 0.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.1 * noise + key.endswith("weight"))


def run(model: nn.Module, name: str, seed: int = 1, grad: bool = False) -> Tensor:
    """All floating outputs of one forward pass, flattened into one vector. The inputs are those of `seed`."""
    torch.manual_seed(seed)
    with torch.set_grad_enabled(grad):
        outputs = list(_tensors(model(**ZOO[name].inputs(model))))
    return torch.cat([tensor.float().flatten() for tensor in outputs if tensor.is_floating_point()])


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    for value in output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ():
        yield from _tensors(value)


def supported_denoisers_markdown() -> str:
    """The README's list of denoisers: one line per kind, the classes in alphabetical order."""
    lines = []
    for kind, rows in KINDS.items():
        classes = sorted({row.cls for row in rows})
        lines.append(f"- **{kind}** ({len(classes)}): " + ", ".join(f"`{cls}`" for cls in classes))
    return "\n".join(lines)
