"""Which base a file was made for, by its layers, their sizes and its header, without the base."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .foreign import ForeignFile

ARCHITECTURES = (
    (r"stable-diffusion-v1|sd_v1|sd1|sd_1", "Stable Diffusion 1.x"),
    (r"stable-diffusion-v2|sd_v2|sd2", "Stable Diffusion 2.x"),
    (r"stable-diffusion-xl|sdxl", "Stable Diffusion XL"),
    (r"stable-diffusion-3|sd3", "Stable Diffusion 3"),
    (r"flux-?2|flux_2", "FLUX.2"),
    (r"flux", "FLUX.1"),
    (r"chroma", "Chroma"),
    (r"lumina", "Lumina 2"),
    (r"qwen", "Qwen-Image"),
    (r"z-?image", "Z-Image"),
)
"""What an architecture is called in `modelspec.architecture` and `ss_base_model_version`."""
STRUCTURES = (
    (r"double_stream_modulation|single_blocks_\d+_linear1.*\b6144|to_qkv_mlp_proj", "FLUX.2"),
    (r"distilled_guidance_layer", "Chroma"),
    (r"(?<!_)double_blocks_\d+_img|single_transformer_blocks_\d+_(attn|proj|norm)|single_blocks_\d+_", "FLUX.1"),
    (r"joint_blocks_\d+_", "Stable Diffusion 3"),
    (r"transformer_blocks_\d+_(img_mod|txt_mod|img_mlp|txt_mlp)", "Qwen-Image"),
    (r"(noise_refiner|context_refiner)_\d+_(attention_to_|attention_qkv|adaLN)", "Z-Image"),
    (r"(?<!_)transformer_blocks_\d+_attn_(add_[qkv]_proj|to_add_out)", "Stable Diffusion 3"),
    (r"label_emb_0|add_embedding_linear", "Stable Diffusion XL"),
    (r"(input|middle|output)_blocks?_.*transformer_blocks_[1-9]", "Stable Diffusion XL"),
    (r"(down|mid|up)_blocks?_.*transformer_blocks_[1-9]", "Stable Diffusion XL"),
)
"""Patterns of layer names, with underscores, in the order in which they tell bases apart."""
UNETS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""Width of the text that a UNet attends to -> base."""
TEXT_KEYS = re.compile(r"attn2_to_[kv]$")


def base_of(file: ForeignFile) -> tuple[str, str] | None:
    """Name of the base and what it is known by; None if nothing tells. Names and sizes count before what is said."""
    names = {module.replace(".", "_"): own for (component, module), own in file.layers.items() if component in _OWN}
    for name, own in names.items():
        width = columns(own) if TEXT_KEYS.search(name) else None
        if width in UNETS:
            return UNETS[width], f"{name} reads text of width {width}"
    for pattern, base in STRUCTURES:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            return base, f"it has a layer {found}"
    for key in ("modelspec.architecture", "ss_base_model_version"):
        said = file.metadata.get(key, "").lower()[:80]
        for pattern, base in ARCHITECTURES:
            if re.search(pattern, said):
                return base, f"its header says {key} = {said}"
    return None


_OWN = ("denoiser", "unet", "transformer", "transformer_2", "prior")


def columns(tensors: Mapping[str, Tensor]) -> int | None:
    """Width of the input of a layer, where its tensors tell."""
    for name in ("down", "hada_w1_b", "diff"):
        if name in tensors and tensors[name].ndim > 1:
            return tensors[name].shape[1]
    pairs = [next((tensors[n].shape[-1] for n in names if n in tensors), 0) for names in LOKR]
    return pairs[0] * pairs[1] or None


LOKR = (("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_b"))


def rank_of(tensors: Mapping[str, Tensor]) -> int | None:
    """The rank of a layer, where there is one."""
    return next((len(tensors[n]) for n in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if n in tensors), None)
