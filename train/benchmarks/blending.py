"""What the pictures of blending share: subjects of the drawn world, each trained on its own, on the embedded base."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from diffusion_adapters import load_adapter, set_adapters
from train.benchmarks.subjects import folders
from train.dreambooth import main as dreambooth
from train.report import GAP, INK, LINE, MARGIN, PAPER, fit, font
from train.ruler import Subject, load_protocol

PROTOCOL = load_protocol("pocket")
SIDE = 48
"""Of pocket's pictures, in pixels."""
TOKENS = ("sks", "zwx")
AT_ONCE = 8


def subject_of(number: int, token: str) -> Subject:
    """A held-out subject of the protocol, numbered from 1, that prompts call by `token`."""
    return dataclasses.replace(PROTOCOL.subjects[number - 1], phrase=f"{token} creature")


def train_subject(subject: Subject, work_dir: Path, adapter: str = "wara") -> Path:
    """The adapter of a subject: trained by `train/dreambooth.py` with its defaults, unless the file is there."""
    file = work_dir / f"{adapter}-{subject.name}-{subject.phrase.split()[0]}" / "adapter.safetensors"
    if not file.is_file():
        pictures = str(folders(subject, None, work_dir / "subjects")[0])
        prompt = PROTOCOL.instance_prompt.replace("{}", subject.phrase)
        own = ["--instance_data_dir", pictures, "--instance_prompt", prompt, "--output_dir", str(file.parent)]
        if dreambooth(["--adapter", adapter, *own]):
            raise RuntimeError(f"{subject.name} could not be trained")
    return file


def load_base(**files: Path) -> Any:
    """The embedded base with adapters by name, none of which acts."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(PROTOCOL.pretrained_model_name_or_path)
    pipe.set_progress_bar_config(disable=True)
    for name, file in files.items():
        load_adapter(pipe, file, name)
    set_adapters(pipe, [])
    return pipe


def draw(pipe: Any, prompts: Sequence[str], seeds: Sequence[int]) -> list[list[Image.Image]]:
    """Pictures of every prompt, in rows, from every seed, in columns, with the adapters that act."""
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    found: list[Image.Image] = []
    for start in range(0, len(pairs), AT_ONCE):
        part = pairs[start : start + AT_ONCE]
        found += pipe(
            [prompt for prompt, _ in part],
            generator=[torch.Generator().manual_seed(seed) for _, seed in part],
            num_inference_steps=PROTOCOL.num_inference_steps,
            guidance_scale=PROTOCOL.guidance_scale,
        ).images
    return [found[i : i + len(seeds)] for i in range(0, len(found), len(seeds))]


def halves() -> tuple[np.ndarray, np.ndarray]:
    """Masks of the left and the right half."""
    left = (np.arange(SIDE) < SIDE / 2).astype(np.float32)[None].repeat(SIDE, 0)
    return left, 1 - left


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 96) -> Image.Image:
    """Rows of pictures, each below its label."""
    columns = max(len(images) for _, images in rows)
    size = (2 * MARGIN + columns * (cell + GAP) - GAP, 2 * MARGIN + len(rows) * (LINE + cell + GAP) - GAP)
    whole = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(whole)
    for y, (label, images) in enumerate(rows):
        top = MARGIN + y * (LINE + cell + GAP)
        pen.text((MARGIN, top), label, INK, font(14))
        for x, image in enumerate(images):
            whole.paste(fit(image, cell), (MARGIN + x * (cell + GAP), top + LINE))
    return whole
