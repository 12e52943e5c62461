"""What the layers of the tiny pipelines are called by others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from diffusion_adapters.outside import is_convolution


def layers(model: nn.Module) -> list[str]:
    """Every layer that can be adapted."""
    return [path for path, module in model.named_modules() if type(module) is nn.Linear or is_convolution(module)]


UNET_BLOCKS = {
    "input_blocks.1": "down_blocks.0.{}.0",
    "input_blocks.3": "down_blocks.1.{}.0",
    "output_blocks.0": "up_blocks.0.{}.0",
    "output_blocks.1": "up_blocks.0.{}.1",
    "output_blocks.2": "up_blocks.1.{}.0",
    "output_blocks.3": "up_blocks.1.{}.1",
}
"""Of a UNet of two levels and one layer a block: `0` is a resnet, `1` an attention."""
UNET_OTHERS = {
    "input_blocks.0.0": "conv_in",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
    "output_blocks.1.1.conv": "up_blocks.0.upsamplers.0.conv",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = (
    "proj_in", "proj_out",
    *(f"transformer_blocks.0.attn{i}.{role}" for i in (1, 2) for role in ("to_q", "to_k", "to_v", "to_out.0")),
    "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2",
)  # fmt: skip


def ldm_names(unet: nn.Module) -> dict[str, tuple[str, ...]]:
    """Layers of the tiny UNets by the original names."""
    pairs = dict(UNET_OTHERS)
    for block, ours in UNET_BLOCKS.items():
        pairs |= {f"{block}.0.{name}": f"{ours.format('resnets')}.{path}" for name, path in RESNET.items()}
        pairs |= {f"{block}.1.{path}": f"{ours.format('attentions')}.{path}" for path in ATTENTION}
    pairs |= {f"middle_block.1.{path}": f"mid_block.attentions.0.{path}" for path in ATTENTION}
    for number, ours in ((0, 0), (2, 1)):
        pairs |= {f"middle_block.{number}.{n}": f"mid_block.resnets.{ours}.{path}" for n, path in RESNET.items()}
    known = set(layers(unet))
    return {name: (path,) for name, path in pairs.items() if path in known}


DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
XLABS = {
    "double_blocks.0.processor.qkv_lora1": "img_attn.qkv",
    "double_blocks.0.processor.qkv_lora2": "txt_attn.qkv",
    "double_blocks.0.processor.proj_lora1": "img_attn.proj",
    "double_blocks.0.processor.proj_lora2": "txt_attn.proj",
}
JOINT = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
}


def numbered(front: str, ours: str, table: Mapping[str, tuple[str, ...]], block: int = 0) -> dict[str, tuple[str, ...]]:
    """The entries of a table for one block."""
    return {f"{front}.{block}.{n}": tuple(f"{ours}.{block}.{p}" for p in paths) for n, paths in table.items()}


BFL = numbered("double_blocks", "transformer_blocks", DOUBLE)
BFL |= numbered("single_blocks", "single_transformer_blocks", SINGLE)
MMDIT = numbered("joint_blocks", "transformer_blocks", JOINT)
