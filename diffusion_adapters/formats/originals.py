"""Names of layers in original checkpoints, where diffusers has others: each with the layers that it was cut into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Names = dict[str, tuple[str, ...]]

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet(model: Any) -> Names:
    """Stable Diffusion 1, 2 and XL: blocks are numbered through."""
    known = [path for path, _ in model.named_modules()]
    pairs = dict(UNET_ENDS)
    renamed = {ours: original for original, ours in RESNET.items()}
    for original, path in _unet_blocks(model):
        for inner in (other.removeprefix(path) for other in known if f"{other}.".startswith(f"{path}.")):
            name = inner.removeprefix(".")
            pairs[original + (f".{renamed.get(name, name)}" if name else "")] = path + inner
    return {original: (path,) for original, path in pairs.items() if path in known}


def _unet_blocks(model: Any) -> Iterator[tuple[str, str]]:
    """Original and own path of each part of a block."""
    number = 1
    for i, block in enumerate(model.down_blocks):
        for j in range(len(block.resnets)):
            yield f"input_blocks.{number}.0", f"down_blocks.{i}.resnets.{j}"
            yield f"input_blocks.{number}.1", f"down_blocks.{i}.attentions.{j}"
            number += 1
        if getattr(block, "downsamplers", None):
            yield f"input_blocks.{number}.0.op", f"down_blocks.{i}.downsamplers.0.conv"
            number += 1
    for k, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{k}", f"mid_block.{part}"
    number = 0
    for i, block in enumerate(model.up_blocks):
        attends = bool(getattr(block, "attentions", None))
        for j in range(len(block.resnets)):
            yield f"output_blocks.{number}.0", f"up_blocks.{i}.resnets.{j}"
            yield f"output_blocks.{number}.1", f"up_blocks.{i}.attentions.{j}"
            number += 1
        if getattr(block, "upsamplers", None):
            yield f"output_blocks.{number - 1}.{1 + attends}.conv", f"up_blocks.{i}.upsamplers.0.conv"


FLUX: Names = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear~",),
}
FLUX_DOUBLE: Names = {
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
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
FLUX_SINGLE: Names = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
    "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),  # a part of linear1, as XLabs calls it
    "proj": ("proj_out",),
}
SD3: Names = {
    "x_embedder.proj": ("pos_embed.proj",),
    "context_embedder": ("context_embedder",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear~",),
}
SD3_JOINT: Names = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
LUMINA2: Names = {
    "attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attention.out": ("attn.to_out.0",),
    "feed_forward.w1": ("feed_forward.linear_1",),
    "feed_forward.w2": ("feed_forward.linear_2",),
    "feed_forward.w3": ("feed_forward.linear_3",),
    "adaLN_modulation.1": ("norm1.linear",),
}


def flux(model: Any) -> Names:
    """Flux.1 of Black Forest Labs, and Chroma."""
    tables = ((FLUX, "", ""), (FLUX_DOUBLE, "double_blocks.{}.", "transformer_blocks.{}."))
    return _tabled(model, (*tables, (FLUX_SINGLE, "single_blocks.{}.", "single_transformer_blocks.{}.")))


def sd3(model: Any) -> Names:
    """Stable Diffusion 3 and 3.5. The last block gives the text no output, and scales before it shifts."""
    found = _tabled(model, ((SD3, "", ""), (SD3_JOINT, "joint_blocks.{}.", "transformer_blocks.{}.")))
    last = len(model.transformer_blocks) - 1
    name = f"joint_blocks.{last}.context_block.adaLN_modulation.1"
    if model.transformer_blocks[last].context_pre_only:
        found[name] = (f"{found[name][0]}~",)
    return found


def lumina2(model: Any) -> Names:
    """Lumina-Image 2.0."""
    blocks = ("layers", "noise_refiner", "context_refiner")
    return _tabled(model, tuple((LUMINA2, f"{part}.{{}}.", f"{part}.{{}}.") for part in blocks))


ORIGINALS: dict[str, Callable[[Any], Names]] = {
    "UNet2DConditionModel": unet,
    "FluxTransformer2DModel": flux,
    "ChromaTransformer2DModel": flux,
    "SD3Transformer2DModel": sd3,
    "Lumina2Transformer2DModel": lumina2,
}
"""Class of the denoiser -> its original names."""


def _tabled(model: Any, tables: tuple[tuple[dict[str, tuple[str, ...]], str, str], ...]) -> Names:
    """The entries of each table whose layers are all there, once for each block that its two fronts number."""
    known = {path for path, _ in model.named_modules()}
    found = {}
    for table, front, ours in tables:
        count = len(getattr(model, ours.partition(".")[0])) if ours else 1
        for i in range(count):
            for original, parts in table.items():
                paths = tuple(ours.format(i) + part for part in parts)
                if all(path.removesuffix("~") in known for path in paths):
                    found[front.format(i) + original] = paths
    return found
