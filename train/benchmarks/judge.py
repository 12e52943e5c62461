"""The judge of hybrid domains: the world's oracle, taught every style, its mixtures and one held-out subject."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train.world.captions import BACKGROUNDS, COLOURS, HELD_OUT, KINDS, STYLES, Attributes, sample_attributes
from train.world.domains import DOMAINS, picture
from train.world.gate import to_tensor
from train.world.oracle import train_oracle
from train.world.subjects import SUBJECTS, subject

INKS = ("photo", "drawing", *HELD_OUT["style"])
HEADS = {
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "ink": INKS,
    "finish": ("smooth", *set(STYLES) - set(INKS)),
    "subject": ("other", "creature"),
}
OF = {
    "drawing": "ink",
    "sketch": "ink",
    "neon": "ink",
    "mosaic": "finish",
    "night": "background",
    "creature": "subject",
}
"""Domain -> the head that reads it."""
RENDERS, STEPS, FRESH = 6000, 1500, 400


def labels(a: Attributes, domains: Sequence[str]) -> list[int]:
    """What the judge has to say of a picture, in the order of HEADS."""
    finish = "mosaic" if "mosaic" in domains else "smooth"
    said = {"kind": a.kind, "colour": a.colour, "background": a.background, "ink": a.style, "finish": finish}
    said["subject"] = "creature" if "creature" in domains else "other"
    return [values.index(said[name]) for name, values in HEADS.items()]


def example(number: int, seed: int) -> tuple[Image.Image, list[int]]:
    """A picture of any content in any mixture of domains, half of the creatures being held-out subjects."""
    rng = np.random.default_rng([seed, 31, number])
    drawn = rng.random(4)
    a = dataclasses.replace(sample_attributes(rng, "patterned"), style="photo")
    domains = [INKS[int(rng.integers(len(INKS)))]] + (["mosaic"] if drawn[0] < 0.4 else [])
    if drawn[1] < 0.25:
        other = subject(int(rng.integers(SUBJECTS)))
        look = "creature" if drawn[2] < 0.6 or other == subject(2) else ""
        own = dataclasses.asdict(other) | {"background": a.background, "style": "photo", "second": None}
        a, domains = (a, [*domains, look]) if look else (Attributes(**own), domains)
    domains = [name for name in domains if name in DOMAINS]
    final = dataclasses.replace(a, **{k: v for name in domains for k, v in DOMAINS[name].changes.items()})
    return picture(a, domains, rng), labels(final, domains)


def _drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rows = [example(number, seed) for number in range(count)]
    pixels = np.stack([np.asarray(image) for image, _ in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([own for _, own in rows])


class Judge:
    """Reads domains and content off pictures."""

    def __init__(self, work_dir: Path, vae: torch.nn.Module, log=print) -> None:
        """Trained on first use, a few minutes of one core; kept in `work_dir`."""
        work_dir.mkdir(parents=True, exist_ok=True)
        path = work_dir / "judge.pt"

        @torch.no_grad()
        def blur(images: Tensor) -> Tensor:
            return vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)

        images, own = (torch.empty(0, 3, 48, 48, dtype=torch.uint8), torch.empty(0, len(HEADS)))
        if not path.exists() or torch.load(path, weights_only=True)["step"] < STEPS:
            images, own = _drawn(RENDERS, 1)
        self.oracle = train_oracle(images, own, STEPS, 1, path, log, blur, attributes=HEADS)
        self.blur = blur

    def read(self, pictures: Sequence[Image.Image]) -> Tensor:
        """n pictures of 48 pixels -> (n, heads) class indices in the order of HEADS."""
        return torch.cat([self.oracle.read(part) for part in to_tensor(list(pictures)).split(100)])

    @torch.no_grad()
    def kinds(self, pictures: Sequence[Image.Image]) -> Tensor:
        """n pictures -> (n, kinds) probabilities."""
        return torch.cat([self.oracle(part)["kind"].softmax(1) for part in to_tensor(list(pictures)).split(100)])

    def domains(self, read: Tensor, names: Sequence[str]) -> np.ndarray:
        """(n, heads) -> (n, domains) 0 or 1: whether each domain is seen."""
        heads = list(HEADS)
        found = [read[:, heads.index(OF[name])] == HEADS[OF[name]].index(name) for name in names]
        return torch.stack(found, 1).double().numpy()

    def accuracy(self) -> dict[str, float]:
        """Share of right answers on fresh renders that went through the VAE."""
        images, own = _drawn(FRESH, 2)
        seen = torch.cat([self.oracle.read(self.blur(part.float() / 127.5 - 1)) for part in images.split(100)])
        return dict(zip(HEADS, (seen == own).double().mean(0).tolist(), strict=True))
