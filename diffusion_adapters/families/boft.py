"""BOFT: orthogonal finetuning by butterfly factors, which mix channels further apart at each stage.

Liu, Qiu, Feng, Xiu, Xue, Yu, Feng, Liu, Heo, Peng, Wen, Black, Weller, Schölkopf 2024, https://arxiv.org/abs/2311.06243.

ΔW = (T_m … T_2 T_1 − I) W with W (out, in), each T_i (out, out) orthogonal: `blocks` blocks (block, block) by Cayley's
transform (I + K) (I − K)⁻¹ of K = −Kᵀ, between a shuffle and its inverse that bring channels 2^i block / 2 apart
together. block = out / `blocks`, the largest divisor up to `block_size` for which out has the stages. With `rescale`
each of the `size` = out channels is multiplied by 1 + r as well.
Starts at W: K = 0, r = 0.
Trains stages blocks block (block - 1) / 2 values per projection, or stages blocks block (block - 1) / 2 + size
with rescale.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapter import FAMILIES, Adapter, AdapterConfig, ForeignLayer
from ..linalg import cayley_delta, limited, skew, skew_part
from ..options import option


@dataclass(frozen=True, kw_only=True)
class BOFTConfig(AdapterConfig):
    block_size: int = option(8, "largest number of channels that are rotated together, even", ge=2)
    stages: int = option(2, "how often; 2^(stages - 1) block_size must divide out, or blocks are smaller", ge=1, le=20)
    rescale: bool = option(False, "scale each channel of that side, too")


@FAMILIES.register("boft")
class BOFT(Adapter):
    Config = BOFTConfig
    learning_rate = 1e-3
    foreign = (frozenset({"boft_blocks"}), frozenset({"boft_blocks", "rescale"}))

    def __init__(self, weight: Tensor, config: BOFTConfig) -> None:
        super().__init__(weight, config)
        self.size, self.stages = self.out_features, config.stages
        fits = [b for b in range(2, config.block_size + 1, 2) if self.size % (2 ** (config.stages - 1) * b) == 0]
        if not fits:
            raise ValueError(f"stages {config.stages} need out = {self.size} to be a multiple of {2**config.stages}")
        self.block = fits[-1]
        self.blocks = self.size // self.block
        self.K = nn.Parameter(torch.zeros(self.stages, self.blocks, self.block * (self.block - 1) // 2))
        if config.rescale:
            self.r = nn.Parameter(torch.zeros(self.size))

    def _rotated(self, x: Tensor) -> Tensor:
        """(T − I) x, (..., out) -> (..., out)."""
        turns = cayley_delta(skew(self.K.flatten(0, 1), self.block)).unflatten(0, (self.stages, self.blocks)).to(x)
        delta = torch.zeros_like(x)
        for i, turn in enumerate(turns):
            width = 2**i * self.block // 2
            mixed = (x + delta).unflatten(-1, (-1, 2, width)).transpose(-1, -2).reshape(*x.shape[:-1], self.blocks, -1)
            turned = torch.einsum("ncb,...nb->...nc", turn, mixed).flatten(-2)
            delta = delta + turned.unflatten(-1, (-1, width, 2)).transpose(-1, -2).flatten(-3)
        return delta + self.r.to(x) * (x + delta) if self.config.rescale else delta

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self._rotated(weight.t()).t()

    def forward(self, x: Tensor, y: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        return self._rotated(y - linear(x.new_zeros(1, self.in_features)))

    @classmethod
    def from_foreign(cls, layer: ForeignLayer) -> tuple[BOFTConfig, dict[str, Tensor]]:
        blocks = layer["boft_blocks"]
        if layer.rows is not None:
            raise ValueError("it mixes all rows of a layer that is several here")
        layer.check("oft_blocks", blocks, len(blocks), layer.shape[0] // blocks.shape[2], *blocks.shape[2:3] * 2)
        turns = limited(blocks - blocks.transpose(-1, -2), layer.alpha(0) * layer.shape[0])
        tensors = {"K": skew_part(turns.flatten(0, 1)).unflatten(0, blocks.shape[:2])}
        if "rescale" in layer:
            tensors["r"] = layer.check("rescale", layer["rescale"].flatten(), layer.shape[0]) - 1
        return cls.Config(block_size=blocks.shape[2], stages=len(blocks), rescale="rescale" in layer), tensors
