"""What can be said of a run before it is started, and without a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_adapters import FAMILIES
from train import preflight
from train.bases import inspect_base
from train.data import check_data, read_folder
from train.dreambooth import resolve
from train.settings import settle
from ui.choices import parsed


@dataclass(frozen=True)
class Found:
    """What is known so far: `lines` for people, the number of steps, and seconds of one once some were tried."""

    lines: tuple[str, ...]
    steps: int
    seconds_per_step: float | None = None
    now: str = ""
    """What is being done, and is not known yet."""

    def more(self, *lines: str) -> Found:
        """With further lines."""
        return replace(self, lines=(*self.lines, *lines))


def look(path: Path) -> Found:
    """Of the run of a configuration file. Raises what refuses it."""
    config, _ = parsed(path)
    check_data(config)
    preflight.contradictions(config)
    info = inspect_base(config)
    config = resolve(config, info)
    folder = read_folder(config, config.resolution, config.seed, info.multiple)
    config = settle(config, FAMILIES[config.adapter], len(folder), 1)
    said = f"{config.max_train_steps} steps of {config.adapter} at learning rate {config.learning_rate:.3g}"
    return Found((*folder.report(), said), config.max_train_steps)
