"""Tiny random stock pipelines, built in code, one per pipeline class that a base drives. `PIPELINES` names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from diffusion_adapters.registry import Registry
from tests.denoisers import redraw

PIPELINES: Registry[Callable[[], DiffusionPipeline]] = Registry("tiny pipeline", "tests.pipelines")
SIDE = 64
"""Pictures of this side, in pixels, suit every pipeline here."""
LENGTH = 128
"""Tokens of a prompt, where a pipeline lets us choose: quicker than its own hundreds."""
CALLS: dict[str, dict[str, Any]] = {
    "hunyuan_dit": {"use_resolution_binning": False, "guidance_scale": 2.0},
    "pixart_alpha": {"use_resolution_binning": False, "guidance_scale": 2.0},
    "pixart_sigma": {"use_resolution_binning": False, "guidance_scale": 2.0},
    "ideogram4": {"guidance_scale": 2.0, "guidance_schedule": None},
    "sana": {"use_resolution_binning": False, "guidance_scale": 2.0},
    "qwen_image": {"true_cfg_scale": 2.0, "negative_prompt": " "},
}
"""What the pipelines are called with that are not called with `guidance_scale` alone."""


def build(name: str, seed: int = 0) -> DiffusionPipeline:
    """The pipeline of that name, its denoiser drawn anew from `seed`, silent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = PIPELINES[name]()
    denoiser = pipeline.components.get("transformer") or pipeline.components["unet"]
    redraw(denoiser, seed)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the pipeline of that name."""
    build(name, seed).save_pretrained(folder)
    return folder


def fit(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Let a pipeline that draws an area of its own, whatever it is asked for, draw pictures of `SIDE`."""
    if type(pipeline).__name__ == "HiDreamImagePipeline":
        pipeline.default_sample_size = SIDE // pipeline.vae_scale_factor
    return pipeline


def length(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """`LENGTH` as an argument, for a pipeline that takes one."""
    takes = "max_sequence_length" in inspect.signature(type(pipeline).__call__).parameters
    return {"max_sequence_length": LENGTH} if takes else {}


def sample(pipeline: DiffusionPipeline, name: str, prompt: str, seed: int = 0, **settings: Any) -> np.ndarray:
    """A picture in two steps with guidance, (h, w, 3) in [0, 1]."""
    settings = {**CALLS.get(name, {"guidance_scale": 2.0}), **length(pipeline), "num_inference_steps": 2, **settings}
    generator = torch.Generator().manual_seed(seed)
    return fit(pipeline)(
        prompt=prompt, height=SIDE, width=SIDE, generator=generator, output_type="np", **settings
    ).images[0]
