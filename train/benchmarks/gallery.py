"""Pictures of blending for the README: a weight sweep, a step schedule, two regions, frequency bands.

Two held-out subjects of the drawn world, each trained on its own on the embedded base unless its adapter is in the work
folder; the adapters are written beside the pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from diffusion_adapters import AdapterWeight, use_adapters
from diffusion_adapters.options import Options, option
from diffusion_adapters.registry import nearest
from train.benchmarks.blending import PROTOCOL, TOKENS, draw, halves, load_base, sheet, subject_of, train_subject
from train.output import write
from train.script import command, read_options

SEEDS = range(PROTOCOL.first_seed, PROTOCOL.first_seed + 5)
ONE = "a photo of a zwx creature in a meadow"
TWO = "a photo of a sks creature and a zwx creature in a meadow"
SUBJECTS = {"red": 1, "green": 2}
Blends = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class GalleryOptions(Options):
    title: ClassVar[str] = "gallery"
    work_dir: Path = option(Path("runs/regions"), "folder of drawn subjects and their adapters")  # noqa: RUF009
    only: tuple[str, ...] | None = option(None, "names of pictures (default: all)")
    threads: int = option(1, "CPU threads; more than one stalls on a busy machine", ge=1)
    output_dir: Path = option(Path("gallery"), "folder for the pictures and adapters")  # noqa: RUF009


def weights() -> tuple[str, Blends]:
    """From the base to the subject and beyond."""
    return ONE, {f"weight {weight}": {"green": weight} for weight in (0, 0.4, 0.7, 1, 1.4)}


def schedule() -> tuple[str, Blends]:
    """The first steps lay the picture out, the later ones paint it."""
    frames = AdapterWeight(schedule={0.0: 0.0, 0.5: 1.0})
    return ONE, {
        "the base": {},
        "all steps": {"green": 1},
        "start=0.3": {"green": AdapterWeight(start=0.3)},
        "end=0.3": {"green": AdapterWeight(end=0.3)},
        "schedule={0.0: 0.0, 0.5: 1.0}": {"green": frames},
    }


def regions() -> tuple[str, Blends]:
    """Two subjects, side by side."""
    left, right = (AdapterWeight(mask=mask) for mask in halves())
    return TWO, {
        "the base": {},
        "both without masks": {"red": 1, "green": 1},
        "red: mask=left, green: mask=right": {"red": left, "green": right},
        "red: mask=right, green: mask=left": {"red": right, "green": left},
    }


def bands() -> tuple[str, Blends]:
    """What is coarser than two tokens, and what is finer."""
    coarse, fine = AdapterWeight(bands=(1, 0)), AdapterWeight(bands=(0, 1))
    return ONE, {
        "green": {"green": 1},
        "red": {"red": 1},
        "both": {"red": 1, "green": 1},
        "green: bands=(1, 0), red: bands=(0, 1)": {"green": coarse, "red": fine},
        "red: bands=(1, 0), green: bands=(0, 1)": {"red": coarse, "green": fine},
    }


PICTURES: dict[str, Callable[[], tuple[str, Blends]]] = {
    function.__name__: function for function in (weights, schedule, regions, bands)
}


def picture(pipe: Any, name: str, seeds: Sequence[int] = SEEDS) -> Image.Image:
    """One picture of the gallery: a row for each blend, a column for each seed."""
    prompt, blends = PICTURES[name]()
    rows = []
    for label, blend in blends.items():
        with use_adapters(pipe, list(blend), blend):
            rows.append((label, draw(pipe, [prompt], seeds)[0]))
    return sheet(rows)


def make(options: GalleryOptions) -> list[Path]:
    """Train what is not trained, draw, write; the paths of the pictures."""
    names = options.only or tuple(PICTURES)
    for name in names:
        if name not in PICTURES:
            raise ValueError(f"--only {name}: no such picture, {nearest(name, PICTURES)}")
    torch.set_num_threads(options.threads)
    files = {}
    for (name, number), token in zip(SUBJECTS.items(), TOKENS, strict=True):
        trained = train_subject(subject_of(number, token), options.work_dir)
        target = options.output_dir / f"{name}.safetensors"
        files[name] = write(target, lambda path, source=trained: shutil.copyfile(source, path))
    pipe = load_base(**files)
    made = []
    for name in names:
        image = picture(pipe, name)
        made.append(
            write(options.output_dir / f"{name}.png", lambda path, image=image: image.save(path, "PNG", optimize=True))
        )
    return made


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Draw and write."""
    for path in make(read_options(GalleryOptions, __doc__, "benchmark.py --gallery", argv)):
        print(path)
