"""What `--hybrid` reads off pictures: each domain, what should have stayed, structure, likeness and diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from train.benchmarks.judge import HEADS, Judge
from train.benchmarks.mixtures import Mixture, Rows
from train.ruler import Encoder
from train.ruler.metrics import Interval, Values, bootstrap, diversity, fidelity
from train.world.gate import to_tensor

METRICS = {
    "product": ("domains × content ↑", "1 where the judge sees every domain, times the content that stayed"),
    "all": ("all domains ↑", "share of pictures in which the judge sees every domain"),
    "weakest": ("weakest domain ↑", "share of pictures with the domain that is seen least"),
    "content": ("content ↑", "share of kind, colour and background, as far as no domain decides them, that the judge "
                "reads as in the base's picture of the same prompt and seed"),
    "structure": ("SCS-sobel ↑", "2 Σ st / Σ (s² + t²) of the Sobel edges s, t of base and adapted picture, same seed "
                  "(RSSA's SCS has HED's edges)"),
    "likeness": ("CS-I ↑", "mean cosine with a domain's pictures by the world's small CLIP, least over the domains"),
    "diversity": ("diversity ↑", "1 - cosine, by that CLIP, between pictures of a prompt from different seeds"),
    "inception": ("IS-like ↑", "exp of the mean KL divergence of the judge's kinds from their mean over a mixture"),
}  # fmt: skip
"""Name -> title, meaning. The CLIP is no encoder of the training."""


def edges(images: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, h w): the length of the Sobel gradient of the grey picture."""
    grey = images.mean(1, keepdim=True)
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])[None, None]
    x, y = (F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), k) for k in (kernel, kernel.transpose(2, 3)))
    return (x.square() + y.square()).sqrt().flatten(1)


def structure(images: Tensor, base: Tensor) -> Tensor:
    """(n, 3, h, w) twice -> (n,): SCS-sobel, 1 for equal edges."""
    s, t = edges(base), edges(images)
    return 2 * (s * t).sum(1) / (s.square() + t.square()).sum(1).clamp(min=1e-12)


class Scorer:
    """Scores the pictures of a mixture against the base's."""

    def __init__(self, judge: Judge, encoder: Encoder, references: Mapping[str, Sequence[Image.Image]]) -> None:
        """`references`: the pictures of each domain."""
        self.judge, self.encoder = judge, encoder
        self.references = {name: encoder.images(pictures) for name, pictures in references.items()}

    def __call__(self, mixture: Mixture, pictures: Rows, base: Rows) -> dict[str, Values]:
        """Each metric and each domain, (prompts, seeds)."""
        flat, before = ([image for row in rows for image in row] for rows in (pictures, base))
        shape = (len(pictures), len(pictures[0]))
        read, own = self.judge.read(flat), self.judge.read(before)
        domains = self.judge.domains(read, mixture.domains).reshape(*shape, -1)
        kept = [list(HEADS).index(name) for name in mixture.kept]
        content = (read[:, kept] == own[:, kept]).double().mean(1).numpy().reshape(shape)
        seen = self.encoder.images(flat).unflatten(0, shape)
        likeness = np.stack([fidelity(seen, self.references[name]) for name in mixture.domains], -1)
        kinds = self.judge.kinds(flat).double().clamp(min=1e-9)
        surprise = (kinds * (kinds / kinds.mean(0)).log()).sum(1).numpy().reshape(shape)
        whole = domains.prod(-1)
        found = {"product": whole * content, "all": whole, "content": content, "inception": surprise}
        found["weakest"] = domains[..., int(domains.mean((0, 1)).argmin())]
        found["likeness"] = likeness[..., int(likeness.mean((0, 1)).argmin())]
        found["structure"] = structure(to_tensor(flat), to_tensor(before)).double().numpy().reshape(shape)
        found["diversity"] = diversity(seen)
        return {**found, **{f"domain {name}": domains[..., i] for i, name in enumerate(mixture.domains)}}


def interval(name: str, values: Values) -> Interval:
    """Mean and 95 % interval over all axes; of the IS-like score after the exponential."""
    one = bootstrap(values)
    return Interval(*np.exp([one.mean, one.low, one.high])) if name == "inception" else one


def table(scores: Mapping[str, Mapping[str, Values]], metrics: Sequence[str]) -> str:
    """Markdown: a row per way, a column per metric."""
    titles = [METRICS[name][0] if name in METRICS else name.removeprefix("domain ") for name in metrics]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(metrics) + 1) + "|"]
    for way, own in scores.items():
        cells = [str(interval(name, own[name])) if name in own else "" for name in metrics]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(values: Mapping[str, Values]) -> dict[str, Any]:
    """Arrays as lists."""
    return {name: value.tolist() for name, value in values.items()}


def judge_of(work_dir: Path) -> Judge:
    """The judge, trained on first use."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained("pipelines/pocket", subfolder="vae").eval().requires_grad_(False)
    return Judge(work_dir, vae)
