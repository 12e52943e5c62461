"""Names of a denoiser's layers in the checkpoint that its authors published, which kohya's scripts and ComfyUI use.

There several projections of diffusers can be one matrix, their rows below each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

from torch import nn

Table = Mapping[str, tuple[str, ...]]
"""Published name -> diffusers' names of the parts, from the top row on; `{}` stands for a number."""

FLUX: Table = {
    "double_blocks.{}.img_attn.qkv": tuple(f"transformer_blocks.{{}}.attn.to_{part}" for part in "qkv"),
    "double_blocks.{}.txt_attn.qkv": tuple(f"transformer_blocks.{{}}.attn.add_{part}_proj" for part in "qkv"),
    "double_blocks.{}.img_attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "double_blocks.{}.txt_attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "double_blocks.{}.img_mlp.0": ("transformer_blocks.{}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": ("transformer_blocks.{}.ff.net.2",),
    "double_blocks.{}.txt_mlp.0": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": ("transformer_blocks.{}.ff_context.net.2",),
    "double_blocks.{}.img_mod.lin": ("transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": ("transformer_blocks.{}.norm1_context.linear",),
    "single_blocks.{}.linear1": (
        *(f"single_transformer_blocks.{{}}.attn.to_{part}" for part in "qkv"),
        "single_transformer_blocks.{}.proj_mlp",
    ),
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.proj_out",),
    "single_blocks.{}.modulation.lin": ("single_transformer_blocks.{}.norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
}
SD3: Table = {
    "joint_blocks.{}.x_block.attn.qkv": tuple(f"transformer_blocks.{{}}.attn.to_{part}" for part in "qkv"),
    "joint_blocks.{}.x_block.attn2.qkv": tuple(f"transformer_blocks.{{}}.attn2.to_{part}" for part in "qkv"),
    "joint_blocks.{}.context_block.attn.qkv": tuple(f"transformer_blocks.{{}}.attn.add_{part}_proj" for part in "qkv"),
    "joint_blocks.{}.x_block.attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "joint_blocks.{}.x_block.attn2.proj": ("transformer_blocks.{}.attn2.to_out.0",),
    "joint_blocks.{}.context_block.attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "joint_blocks.{}.x_block.mlp.fc1": ("transformer_blocks.{}.ff.net.0.proj",),
    "joint_blocks.{}.x_block.mlp.fc2": ("transformer_blocks.{}.ff.net.2",),
    "joint_blocks.{}.context_block.mlp.fc1": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "joint_blocks.{}.context_block.mlp.fc2": ("transformer_blocks.{}.ff_context.net.2",),
    "joint_blocks.{}.x_block.adaLN_modulation.1": ("transformer_blocks.{}.norm1.linear",),
    "joint_blocks.{}.context_block.adaLN_modulation.1": ("transformer_blocks.{}.norm1_context.linear",),
    "context_embedder": ("context_embedder",),
}
LUMINA2: Table = {
    f"{blocks}.{{}}.{own}": tuple(f"{blocks}.{{}}.{name}" for name in names)
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for own, names in {
        "attention.qkv": tuple(f"attn.to_{part}" for part in "qkv"),
        "attention.out": ("attn.to_out.0",),
        **{f"feed_forward.w{i}": (f"feed_forward.linear_{i}",) for i in (1, 2, 3)},
        "adaLN_modulation.1": ("norm1.linear",),
    }.items()
}
TABLES: Mapping[str, Table] = {
    "FluxTransformer2DModel": FLUX,
    "ChromaTransformer2DModel": FLUX,
    "SD3Transformer2DModel": SD3,
    "Lumina2Transformer2DModel": LUMINA2,
}
UNET_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET_LAYERS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


REORDERED = ("AdaLayerNormContinuous",)
"""Its rows are scale and shift in diffusers, shift and scale elsewhere."""


def native_names(denoiser: nn.Module) -> dict[str, tuple[str, ...]]:
    """Published name of each linear and convolution -> paths of its parts in `denoiser`, from the top row on.

    A layer whose numbers stand in another order there has no entry. Empty for a base that is published as diffusers
    names it, or whose published names are not known here.
    """
    modules = dict(denoiser.named_modules())
    layers = {path for path, module in modules.items() if _is_layer(module)}
    layers = {path for path in layers if type(modules[path.rpartition(".")[0]]).__name__ not in REORDERED}
    kind = type(denoiser).__name__
    if kind == "UNet2DConditionModel":
        per_block = getattr(denoiser, "config", {}).get("layers_per_block")
        pairs = ((_unet_name(path, per_block, layers), path) for path in layers) if isinstance(per_block, int) else ()
        return {name: (path,) for name, path in pairs if name is not None}
    found = {}
    for name, parts in TABLES.get(kind, {}).items():
        pattern = re.compile(re.escape(parts[0]).replace(r"\{\}", r"(\d+)"))
        for numbers in {match.groups() for match in map(pattern.fullmatch, layers) if match}:
            paths = tuple(part.format(*numbers) for part in parts)
            if all(path in layers for path in paths):
                found[name.format(*numbers)] = paths
    return found


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) or isinstance(getattr(module, "in_features", None), int)


def _unet_name(path: str, per_block: int, layers: Set[str]) -> str | None:
    """A layer of diffusers' UNet in that of CompVis and Stability AI, whose blocks are numbered through."""
    if path in UNET_LAYERS:
        return UNET_LAYERS[path]
    match = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(\w+)\.(\d+)\.(.+)", path)
    if match is None:
        return None
    side, part = match[1] or match[3], match[4]
    block, index, rest = int(match[2] or 0), int(match[5]), match[6]
    if part == "resnets":
        if rest not in RESNET_LAYERS:
            return None
        rest = RESNET_LAYERS[rest]
    if side == "mid":
        places: dict[str, Any] = {"resnets": f"middle_block.{2 * index}", "attentions": "middle_block.1"}
    elif side == "down":
        first = 1 + block * (per_block + 1)
        places = {"resnets": f"input_blocks.{first + index}.0", "attentions": f"input_blocks.{first + index}.1"}
        places["downsamplers"] = f"input_blocks.{first + per_block}.0"
        rest = "op" if part == "downsamplers" else rest
    else:
        first = block * (per_block + 1)
        places = {"resnets": f"output_blocks.{first + index}.0", "attentions": f"output_blocks.{first + index}.1"}
        attends = any(layer.startswith(f"up_blocks.{block}.attentions.") for layer in layers)
        places["upsamplers"] = f"output_blocks.{first + per_block}.{2 if attends else 1}"
    return f"{places[part]}.{rest}" if part in places else None
