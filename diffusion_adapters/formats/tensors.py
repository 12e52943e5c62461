"""Names of the tensors of one layer, in the files of every program."""

from __future__ import annotations

_SPELLINGS = {
    "down": ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight", "down.weight"),
    "up": ("lora_up.weight", "lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight", "up.weight"),
    "mid": ("lora_mid.weight", "lora.mid.weight"),
    "up_bias": ("lora_up.bias", "lora_B.bias"),
    "alpha": ("alpha",),
    "magnitude": ("lora_magnitude_vector", "lora_magnitude_vector.weight"),
    "dora_scale": ("dora_scale",),
    "diff": ("diff",),
    "diff_b": ("diff_b",),
    "w_norm": ("w_norm",),
    "b_norm": ("b_norm",),
    "rescale": ("rescale",),
    "oft_blocks": ("oft_blocks",),
    "oft_R": ("oft_R.weight", "oft_R"),
    "boft_R": ("boft_R",),
    "boft_s": ("boft_s",),
    "scalar": ("scalar",),
    "glora_a1": ("a1.weight",),
    "glora_a2": ("a2.weight",),
    "glora_b1": ("b1.weight",),
    "glora_b2": ("b2.weight",),
    "glora_mid": ("bm.weight",),
    "ia3": ("weight", "ia3_l"),
    "ia3_side": ("on_input",),
    **{f"hada_{end}": (f"hada_{end}",) for end in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{end}": (f"lokr_{end}",) for end in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_NAMES |= {f"{end}.default{rest}": _NAMES[f"{end}{rest}"] for end, rest in (
    ("lora_A", ".weight"), ("lora_B", ".weight"), ("lora_magnitude_vector", ""), ("oft_R", ".weight"),
)}  # fmt: skip


def split(key: str) -> tuple[str, str] | None:
    """The front of a key, which names a layer, and the name of the tensor, None if it is unknown."""
    parts = key.split(".")
    for count in (3, 2, 1):
        name = _NAMES.get(".".join(parts[-count:]))
        if name is not None and len(parts) > count:
            return ".".join(parts[:-count]), name
    return None
