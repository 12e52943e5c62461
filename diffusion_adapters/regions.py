"""Adapters that act in a part of the image: attention is evaluated once per region, and the outputs are composed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .layout import IMAGE, TEXT, Layout


class Regions:
    """The masks of the active adapters. Call 0 of an attention has adapters without mask, call i also those of mask i.

    out = o_0 + Σ_i m_i (o_i - o_0) for image tokens, m_i the mask averaged over each token. Text tokens have no place:
    there m_i is the part of the image that the mask covers. Keys and values are whole in each call, so that nothing of
    an adapter passes its border by softmax. If the masks add up to 1 everywhere, o_0 is not needed.
    """

    def __init__(self, masks: list[Tensor]) -> None:
        self.masks = masks
        same = len({mask.shape for mask in masks}) == 1
        self.partition = same and bool(((sum(masks) - 1).abs() < 1e-3).all())  # type: ignore[union-attr]
        self.calls = tuple(range(1 if self.partition else 0, len(masks) + 1))

    def compose(self, path: str, kind: str, layout: Layout, run: Callable[[int], Any]) -> Any:
        """The output of an attention: `run(i)` gives that of call i, a tensor or a pair (image, text)."""
        outputs = [run(call) for call in self.calls]
        if not isinstance(outputs[0], tuple):
            return self._join(path, kind, layout, outputs)
        kinds = [IMAGE, *[TEXT] * (len(outputs[0]) - 1)]
        parts = zip(kinds, *outputs, strict=True)
        return tuple(
            None if values[0] is None else self._join(path, kind, layout, list(values)) for kind, *values in parts
        )

    def _join(self, path: str, kind: str, layout: Layout, outputs: list[Tensor]) -> Tensor:
        shares = self._shares(path, kind, layout, outputs[0])
        if self.partition:
            total = outputs[0] * shares[0]
            for output, share in zip(outputs[1:], shares[1:], strict=True):
                total = torch.addcmul(total, output, share)
            return total
        base = outputs[0]
        total = base
        for output, share in zip(outputs[1:], shares, strict=True):
            total = torch.addcmul(total, output - base, share)
        return total

    def _shares(self, path: str, kind: str, layout: Layout, like: Tensor) -> list[Tensor]:
        """m_i for each token of an output (batch, layout, channels) or (batch, channels, h, w)."""
        if kind != TEXT and like.ndim == 4:
            return [self._resized(mask, (like.shape[2], like.shape[3]), like) for mask in self.masks]
        if like.ndim == 2:  # of the whole image, as a modulation
            return [mask.mean().to(like) for mask in self.masks]
        image = layout.image(path, like.shape[1], kind)
        shares = []
        for mask in self.masks:
            share = mask.mean().to(like).repeat(1, like.shape[1], 1)
            if image is not None:
                place, grid, _ = image
                share[:, place] = self._resized(mask, grid, like).reshape(1, -1, 1)
            shares.append(share)
        return shares

    @staticmethod
    def _resized(mask: Tensor, grid: tuple[int, int], like: Tensor) -> Tensor:
        return interpolate(mask[None, None].to(like), grid, mode="area")
