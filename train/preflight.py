"""What can be known to fail is known before anything is loaded: flags against each other, folders, disk, upload."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from torch import nn

from train import hub, output, trackers
from train.bases import BaseInfo
from train.data import Folder

LOG = logging.getLogger("train")
C = TypeVar("C")


def contradictions(config: Any) -> None:
    """Raise ValueError for flags that cannot be meant together, naming both and what to do."""
    names = trackers.check(config)
    if config.hub_token and "wandb" in names:
        raise ValueError(
            "--report_to wandb with --hub_token: wandb keeps the command line, and the token with it; "
            "run `hf auth login` instead and leave --hub_token out"
        )
    if config.hub_token and not config.push_to_hub:
        raise ValueError("--hub_token does nothing without --push_to_hub; add that or leave the token out")
    if config.validation_steps and config.validation_epochs:
        raise ValueError("--validation_steps and --validation_epochs both say when to look; give one of them")


def check(
    accelerator: Accelerator, config: C, info: BaseInfo, folder: Folder, attach: Callable[[nn.Module], nn.Module]
) -> C:
    """Check everything, on every process, and log what will be used; returns `config` with the repository resolved.

    `attach` puts a new adapter into a denoiser. Raises ValueError or OSError, having made no folder.
    """
    options: Any = config
    contradictions(options)
    blank = info.denoiser()
    numbers = sum(value.numel() for value in attach(blank).state_dict().values()) if blank else 0
    if accelerator.is_main_process:
        repository = hub.prepare(options, options.output_dir)
        output.prepare(options.output_dir, 4 * numbers)
        for line in folder.report():
            LOG.info(line)
        return dataclasses.replace(options, hub_model_id=repository)
    return config
