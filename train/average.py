"""What a run shows of itself: the values of the last step, or a running average of all steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


class Average:
    """The averaged values of a run: an exponential moving average, or what a schedule-free optimizer keeps, or none."""

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: Any, decay: float | None) -> None:
        """`decay`: of the exponential moving average, or None. Raises ValueError for two averages at once."""
        self.parameters = list(parameters)
        self.own = optimizer if callable(getattr(optimizer, "eval", None)) else None
        if self.own is not None and decay is not None:
            raise ValueError("--use_ema and a schedule-free optimizer both average; leave --use_ema out")
        if self.own is not None:
            self.own.train()
        self.moving: Any = None
        if decay is not None:
            from diffusers.training_utils import EMAModel

            self.moving = EMAModel(self.parameters, decay=decay, foreach=True)

    def step(self) -> None:
        """Take up the values of a new step."""
        if self.moving is not None:
            self.moving.step(self.parameters)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the parameters hold the average; after it what they held before, bitwise."""
        if self.own is None and self.moving is None:
            yield
            return
        kept = [parameter.detach().clone() for parameter in self.parameters]
        try:
            if self.own is not None:
                self.own.eval()
            if self.moving is not None:
                self.moving.copy_to(self.parameters)
            yield
        finally:
            if self.own is not None:
                self.own.train()
            self._set(kept)

    def state(self) -> dict[str, Any]:
        """What is needed to go on from a file that holds the average: the values themselves."""
        if self.own is None and self.moving is None:
            return {}
        saved: dict[str, Any] = {"values": [parameter.detach() for parameter in self.parameters]}
        if self.moving is not None:
            saved |= {"steps": self.moving.optimization_step, "moving": self.moving.shadow_params}
        return saved

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from `state()`."""
        if saved:
            self._set(saved["values"])
        if self.moving is not None:
            self.moving.optimization_step = saved["steps"]
            for own, value in zip(self.moving.shadow_params, saved["moving"], strict=True):
                own.copy_(value)

    @torch.no_grad()
    def _set(self, values: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
