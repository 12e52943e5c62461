"""Experiment trackers, through accelerate: the numbers of each step, and validation pictures where one takes pictures.

A tracker that fails to start stops the run before anything is loaded; one that fails later is left behind with a
warning, as no curve is worth a training.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from accelerate import Accelerator
from PIL import Image

from diffusion_adapters.options import Options, option
from diffusion_adapters.registry import nearest
from train.redact import redact

LOG = logging.getLogger("train")
KNOWN = ("tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "trackio", "swanlab")


@dataclass(frozen=True, kw_only=True)
class TrackerOptions(Options):
    title: ClassVar[str] = "trackers"
    report_to: tuple[str, ...] | None = option(
        None, f"where loss, learning rate and pictures are sent: {', '.join(KNOWN)}, all (default: nowhere)"
    )
    logging_dir: Path = option(Path("logs"), "folder for trackers that write files, below the output folder")  # noqa: RUF009


def check(options: TrackerOptions) -> list[str]:
    """The trackers to start. Raises ValueError for one that is unknown or whose package is missing."""
    import accelerate.tracking as tracking

    asked = [name for name in options.report_to or () if name != "none"]
    there = [str(name) for name in tracking.get_available_trackers()]
    for name in asked:
        if name not in (*KNOWN, "all", *tracking.LOGGER_TYPE_TO_CLASS):
            raise ValueError(f"--report_to: unknown tracker {name!r}, {nearest(name, [*KNOWN, 'all'])}")
        if name in KNOWN and name not in there:
            raise ValueError(f"--report_to {name}: the package is not installed; pip install {name}")
    if "all" in asked and not there:
        raise ValueError(f"--report_to all: no tracker is installed; pip install one of {', '.join(KNOWN)}")
    return list(dict.fromkeys(n for name in asked for n in (there if name == "all" else [name])))


class Trackers:
    """The trackers of one run, on the main process; does nothing if there are none."""

    def __init__(self, accelerator: Accelerator, options: TrackerOptions, title: str, folder: Path) -> None:
        """Start them under the name `title`. `options` is what the run was told, secrets are left out."""
        from accelerate.tracking import filter_trackers

        names = check(options)
        self.running: list[Any] = []
        if not names:
            return
        where = folder / options.logging_dir
        accelerator.log_with = filter_trackers(names, where)
        accelerator.project_configuration.logging_dir = str(where)
        told = {name: _plain(value) for name, value in options.as_dict().items()}
        try:
            accelerator.init_trackers(title, config=told)
        except Exception as error:  # of any library: no account, no network, ...
            said = redact(" ".join(str(error).split()) or type(error).__name__)
        else:
            self.running = list(accelerator.trackers)
            return
        raise ValueError(f"--report_to {' '.join(names)}: cannot be started: {said}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def images(self, title: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
        """Pictures of equal size with what was asked for in each, to the trackers that take pictures."""
        self._each(lambda tracker: _SENT.get(tracker.name, _listed)(tracker, title, images, captions, step))

    def finish(self) -> None:
        """Flush and close."""
        self._each(lambda tracker: tracker.finish())
        self.running = []

    def _each(self, act: Callable[[Any], object]) -> None:
        for tracker in list(self.running):
            try:
                act(tracker)
            except Exception as error:  # of any library: the network may be gone
                self.running.remove(tracker)
                said = redact(" ".join(str(error).split()))
                LOG.warning(f"{tracker.name} is left behind, the training goes on: {type(error).__name__}: {said}")


def _plain(value: Any) -> Any:
    """What every tracker takes as a setting."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else value


def _tensorboard(tracker: Any, title: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    tracker.log_images({title: stacked}, step=step, dataformats="NHWC")
    tracker.log({f"{title}, prompts": "  \n".join(captions)}, step=step)


def _captioned(tracker: Any, title: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
    """wandb, trackio and swanlab: a list of Image objects of their own."""
    own = importlib.import_module(tracker.name).Image
    shown = [own(image, caption=caption) for image, caption in zip(images, captions, strict=True)]
    tracker.log({title: shown}, step=step)


def _aim(tracker: Any, title: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
    for i, pair in enumerate(zip(images, captions, strict=True)):
        tracker.log_images({f"{title} {i}": pair}, step=step)


def _comet(tracker: Any, title: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        tracker.writer.log_image(image, name=f"{title} {i}", step=step, metadata={"prompt": caption})


def _clearml(tracker: Any, title: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
    for i, image in enumerate(images):
        tracker.log_images({f"{title}/{i}": image}, step=step)


def _mlflow(tracker: Any, title: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
    mlflow = importlib.import_module("mlflow")
    for i, image in enumerate(images):
        mlflow.log_image(image, artifact_file=f"{title}/step_{step}_{i}.png")


def _listed(tracker: Any, title: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
    if hasattr(tracker, "log_images"):
        tracker.log_images({title: list(images)}, step=step)


_SENT: dict[str, Callable[[Any, str, Sequence[Image.Image], Sequence[str], int], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _captioned,
    "trackio": _captioned,
    "swanlab": _captioned,
    "aim": _aim,
    "comet_ml": _comet,
    "clearml": _clearml,
    "mlflow": _mlflow,
}
