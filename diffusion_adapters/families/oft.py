"""OFT: orthogonal finetuning, rotations of blocks of channels.

Qiu, Liu, Feng, Xue, Feng, Liu, Zhang, Weller, Schölkopf 2023, https://arxiv.org/abs/2306.07280, equation 4.

ΔW = W (T − I) with `side` in, W (out, in), T (in, in), or (T − I) W with out. T is block-diagonal: its `blocks` blocks
T_i (block, block) are orthogonal by Cayley's transform, T_i = (I + K_i) (I − K_i)⁻¹ of K_i = −K_iᵀ. block is the
largest divisor of in or out up to `block_size`. With `rescale` the `size` channels of that side are scaled by 1 + m.
Starts at W: K = 0, m = 0.
Trains blocks block (block - 1) / 2 values per projection, or blocks block (block - 1) / 2 + size with rescale.

With `powers` the inverse is a Neumann series: T_i = I + 2 K_i + … + 2 K_i^(powers - 1) + K_i^powers, as in
Qiu, Liu, Weller, Schölkopf 2025, https://arxiv.org/abs/2506.19847; then T_i is orthogonal for small K_i alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, ForeignLayer
from ..linalg import cayley_delta, largest_divisor, limited, skew, skew_part
from ..options import option


@dataclass(frozen=True, kw_only=True)
class OFTConfig(AdapterConfig):
    block_size: int = option(32, "largest number of channels that are rotated together", ge=2)
    side: str = option("in", "which channels are rotated", choices=("in", "out"))
    powers: int = option(0, "terms of a series in place of the inverse of Cayley's transform; 0 for the inverse", ge=0)
    rescale: bool = option(False, "scale each channel of that side, too")


@FAMILIES.register("oft")
class OFT(Adapter):
    Config = OFTConfig
    learning_rate = 1e-3
    foreign = (frozenset({"oft_R"}), frozenset({"oft_blocks"}), frozenset({"oft_blocks", "rescale"}))

    def __init__(self, weight: Tensor, config: OFTConfig) -> None:
        super().__init__(weight, config)
        self.size = self.in_features if config.side == "in" else self.out_features
        self.block = largest_divisor(self.size, config.block_size)
        self.blocks = self.size // self.block
        self.transforms_input, self.adds_output = config.side == "in", config.side == "out"
        if self.block < 2:
            raise ValueError(f"no block_size up to {config.block_size} divides {config.side} = {self.size}")
        self.K = nn.Parameter(torch.zeros(self.blocks, self.block * (self.block - 1) // 2))
        if config.rescale:
            self.m = nn.Parameter(torch.zeros(self.size))

    def _rotated(self, x: Tensor) -> Tensor:
        """(T − I) x, (..., size) -> (..., size)."""
        turn = cayley_delta(skew(self.K, self.block), self.config.powers).to(x)
        blocks = x.unflatten(-1, (self.blocks, self.block))
        delta = torch.einsum("ncb,...nb->...nc", turn, blocks).flatten(-2)
        return delta + self.m.to(x) * (x + delta) if self.config.rescale else delta

    def delta_weight(self, weight: Tensor) -> Tensor:
        if self.config.side == "out":
            return self._rotated(weight.t()).t()
        return weight @ self._rotated(torch.eye(self.in_features, device=weight.device)).t()

    def input_delta(self, x: Tensor) -> Tensor:
        return self._rotated(x)

    def forward(self, x: Tensor, y: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        return self._rotated(y - linear(x.new_zeros(1, self.in_features)))

    @classmethod
    def from_foreign(cls, layer: ForeignLayer) -> tuple[OFTConfig, dict[str, Tensor]]:
        if "oft_R" in layer:
            return cls._from_peft(layer)
        blocks = layer["oft_blocks"]
        whole = blocks.shape[0] * blocks.shape[1]
        # T is the transpose of (I + Q) (I − Q)⁻¹, which is that of −Q.
        turn = -limited(blocks - blocks.transpose(1, 2), layer.alpha(0) * whole)
        tensors = {"K": skew_part(turn)}
        if "rescale" in layer:
            tensors["m"] = layer.check("rescale", layer.take(layer["rescale"].flatten()), layer.shape[0]) - 1
        block = blocks.shape[1]
        start, stop = layer.rows[0] if layer.rows else (0, whole)
        if start % block or stop % block or stop - start != layer.shape[0] or len(layer.rows or "1") > 1:
            raise ValueError(f"its blocks of {block} rows, {whole} in all, do not end where this layer does")
        tensors["K"] = tensors["K"][start // block : stop // block]
        return cls.Config(block_size=block, side="out", rescale="rescale" in layer), tensors

    @classmethod
    def _from_peft(cls, layer: ForeignLayer) -> tuple[OFTConfig, dict[str, Tensor]]:
        vectors, settings = layer["oft_R"], layer.settings
        block, size = round((1 + (1 + 8 * vectors.shape[1]) ** 0.5) / 2), layer.shape[1]
        if settings.get("coft"):
            raise ValueError("coft is not supported: it changes its values with each use")
        count = size // block
        vectors = vectors.expand(count, -1) if len(vectors) == 1 else vectors
        terms = int(settings.get("num_cayley_neumann_terms", 5)) if settings.get("use_cayley_neumann", True) else 0
        if terms and not 3 <= terms <= 20:
            raise ValueError(f"num_cayley_neumann_terms must be 3 to 20, got {terms}")
        layer.check("oft_R", vectors, count, block * (block - 1) // 2)
        # Its T is the transpose of I + 2 Q + 2 Q² + …, but of (I − Q) (I + Q)⁻¹ where the inverse is exact.
        config = cls.Config(block_size=block, powers=max(terms - 1, 3) if terms else 0)
        return config, {"K": -vectors if terms else vectors.clone()}
