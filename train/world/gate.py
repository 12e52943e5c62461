"""The gate: does a pipeline draw what 200 fresh prompts ask for, in the eyes of the oracle?"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from train.world.captions import ATTRIBUTES, KINDS, Attributes, prompt, sample_attributes
from train.world.data import labels_of
from train.world.draw import render
from train.world.oracle import Oracle, accuracy

THRESHOLDS = {"kind": 0.85, "colour": 0.90, "background": 0.95, "style": 0.85, "pattern": 0.70}
FRESH = 99  # seed of everything the gate draws; training seeds are other streams


def fresh_attributes(count: int, pool: str = "styled", seed: int = FRESH) -> list[Attributes]:
    """Contents for `count` prompts, kinds in turn, everything else at random."""
    streams = (np.random.default_rng([seed, 1, index]) for index in range(count))
    return [sample_attributes(rng, pool, KINDS[index % len(KINDS)]) for index, rng in enumerate(streams)]


def to_tensor(images: list[Image.Image]) -> Tensor:
    """Pictures -> (n, 3, h, w) in [-1, 1]."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def sample(
    pipeline: StableDiffusionPipeline, prompts: list[str], steps: int = 20, guidance_scale: float = 2.0, batch: int = 20
) -> list[Image.Image]:
    """One picture a prompt; the seed of picture i is i."""
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        size = pipeline.unet.config.sample_size * 4
        images += pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            height=size,
            width=size,
        ).images
    return images


def grid(images: list[Image.Image], columns: int, zoom: int = 2) -> Image.Image:
    """Pictures side by side with a thin gap, enlarged without smoothing."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + 2)), (255, 255, 255))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + 2), index // columns * (height + 2)))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def measure(
    pipeline: StableDiffusionPipeline, oracle: Oracle, count: int, guidance_scale: float, folder: Path, steps: int = 20
) -> dict:
    """Score `count` fresh prompts and as many fresh renders; leaves gate.json and gate.png in `folder`."""
    wanted = fresh_attributes(count)
    labels = torch.tensor([labels_of(attributes) for attributes in wanted])
    began = time.process_time()
    images = sample(pipeline, [prompt(attributes) for attributes in wanted], steps, guidance_scale)
    seconds = time.process_time() - began
    renders = [render(attributes, np.random.default_rng([FRESH, 2, i])) for i, attributes in enumerate(wanted)]
    real = to_tensor(renders)
    with torch.no_grad():
        rebuilt = pipeline.vae.decode(pipeline.vae.encode(real).latent_dist.mode()).sample.clamp(-1, 1)
    pairs = fresh_attributes(min(count, 40), "pairs", FRESH + 1)
    pair_images = sample(pipeline, [prompt(attributes) for attributes in pairs], steps, guidance_scale)
    scores = {
        "prompts": count,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "cpu_seconds_per_image": seconds / count,
        "vae_psnr_db": -10 * torch.log10(((rebuilt - real) / 2).square().mean()).item(),
        "pocket": accuracy(oracle, to_tensor(images), labels),
        "pairs": _pairs(oracle, pair_images, pairs),
        "pocket_plain_photo": _subset(oracle, images, wanted, labels),
        "real_renders": accuracy(oracle, real, labels),
        "through_vae": accuracy(oracle, rebuilt, labels),
    }
    scores["passes"] = all(scores["pocket"][name] >= least for name, least in THRESHOLDS.items())
    (folder / "gate.json").write_text(json.dumps(scores, indent=1) + "\n")
    grid(images[:50] + pair_images[:10], 10).save(folder / "gate.png")
    return scores


def _pairs(oracle: Oracle, images: list[Image.Image], wanted: list[Attributes]) -> dict[str, float]:
    """Reported, not gated: each half is cut out around its object, enlarged to 48 pixels and read for kind and colour.

    The oracle never saw pairs, so the same cut of real renders is read as well.
    """
    scores: dict[str, float] = {}
    renders = [render(attributes, np.random.default_rng([FRESH, 3, i])) for i, attributes in enumerate(wanted)]
    for source, pictures in (("pocket", images), ("real", renders)):
        for side, left in (("left", 0), ("right", 18)):
            cuts = [
                image.crop((left, 11, left + 30, 41)).resize((48, 48), Image.Resampling.BICUBIC) for image in pictures
            ]
            read = oracle.read(to_tensor(cuts))
            asked = [(a.kind, a.colour) if side == "left" else a.second or ("", "") for a in wanted]
            for column, name in enumerate(("kind", "colour")):
                right = [
                    ATTRIBUTES[name][int(row[column])] == pair[column] for row, pair in zip(read, asked, strict=True)
                ]
                scores[f"{source}_{side}_{name}"] = sum(right) / len(right)
    return scores


def _subset(oracle: Oracle, images: list[Image.Image], wanted: list[Attributes], labels: Tensor) -> dict[str, float]:
    rows = [i for i, attributes in enumerate(wanted) if attributes.style == "photo" and attributes.pattern == "plain"]
    if not rows:
        return {}
    return accuracy(oracle, to_tensor([images[i] for i in rows]), labels[rows])


def table(scores: dict) -> str:
    """The gate as a Markdown table."""
    columns = ("attribute", "pocket", "wanted", "oracle on real renders", "renders through the VAE")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in ATTRIBUTES:
        values = [scores["pocket"][name], THRESHOLDS[name], scores["real_renders"][name], scores["through_vae"][name]]
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)
