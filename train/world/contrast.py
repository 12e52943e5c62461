"""How the ruler's encoders are trained: two contrastive losses and one resumable loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, ResNetModel

from train.world.captions import ATTRIBUTES, Attributes, caption, prompt, truths
from train.world.data import labels_of
from train.world.encoders import CLIP_SIZE, ENCODER_SIZE, resize, text_features, tokenize
from train.world.learn import Leg, Log, generator, place, save_atomically, total_steps
from train.world.muon import Muon, split_parameters
from train.world.twins import SIBLINGS, Families

TEMPERATURE = 0.1
CHANGED = (0.45, 0.1, 0.1, 0.1, 0.25)
"""How often each of ATTRIBUTES makes a hard negative: kinds and patterns are learned last."""


@dataclass(frozen=True)
class Plan:
    """A stage's curriculum, the seed of every random number, seconds between checkpoints."""

    stage: str
    legs: tuple[Leg, ...]
    seed: int
    save_every: float = 60.0


def fit(modules: nn.ModuleList, loss_of: Callable[[torch.Generator], Tensor], plan: Plan, path: Path, log: Log) -> None:
    """Minimize `loss_of` by Muon and AdamW along the plan's legs; resumes exactly, also into a leg that was added."""
    matrices, rest = split_parameters(modules)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=1e-3, weight_decay=1e-3, betas=(0.9, 0.98)),
        Muon(matrices, lr=1e-3, decay=0.05),
    ]
    start, losses, began = 0, [], time.perf_counter()
    if path.exists():
        state = torch.load(path, map_location=next(modules.parameters()).device, weights_only=True)
        modules.load_state_dict(state["modules"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = state["step"]
    modules.train()
    saved_at = began
    for step in range(start, total_steps(plan.legs)):
        loss = loss_of(generator(plan.seed, step))
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        _, lr = place(plan.legs, step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        done, last = step + 1, step + 1 == total_steps(plan.legs)
        if done % 50 == 0 or last:
            rate = len(losses) / (time.perf_counter() - began)
            log({"stage": plan.stage, "step": done, "loss": sum(losses) / len(losses), "steps_per_s": rate})
            losses, began = [], time.perf_counter()
        if last or time.perf_counter() - saved_at > plan.save_every:
            state = {"modules": modules.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": done}
            save_atomically(state, path)
            saved_at = time.perf_counter()


def disturb(images: Tensor, random: torch.Generator, shift: int) -> Tensor:
    """(b, 3, s, s) in [-1, 1]: each quarter of the batch moved by up to `shift` pixels; brightness, contrast, noise."""
    n, s = len(images), images.shape[-1]
    padded = F.pad(images, (shift,) * 4, mode="replicate")
    parts = []
    for part in padded.split(-(-n // 4)):
        dy, dx = torch.randint(0, 2 * shift + 1, (2,), generator=random).tolist()
        parts.append(part[:, :, dy : dy + s, dx : dx + s])
    gain = 1 + 0.1 * (2 * torch.rand(n, 1, 1, 1, generator=random) - 1)
    offset = 0.1 * (2 * torch.rand(n, 1, 1, 1, generator=random) - 1)
    level = 0.12 * torch.rand(n, 1, 1, 1, generator=random)
    return torch.cat(parts) * gain + offset + level * torch.randn(images.shape, generator=random)


def supervised_contrast(features: Tensor, labels: Tensor) -> Tensor:
    """Khosla et al. 2020, eq. 2: unit vectors (n, d); equal labels (n,) attract, all others repel."""
    scores = features @ features.T / TEMPERATURE
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    log_share = scores - scores.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels[None]) & ~itself
    return -(log_share * positive).sum(1).div(positive.sum(1)).mean()


class Heads(nn.Module):
    """Linear readers of each attribute: they keep attributes apart in the features, and are then thrown away."""

    def __init__(self, width: int, attributes: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for values in attributes.values())

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy; features (n, d), labels (n, attributes) with -1 where a thing has no such attribute."""
        losses = [F.cross_entropy(head(features), labels[:, i], ignore_index=-1) for i, head in enumerate(self.heads)]
        return torch.stack(losses).mean()


def identity_loss(
    encoder: ResNetModel, heads: Heads, families: Families, random: torch.Generator, batch: int = 16
) -> Tensor:
    """`batch` families × 3 siblings × 2 of their 4 views, against each other."""
    device = next(encoder.parameters()).device
    rows = torch.randint(len(families.looks), (batch,), generator=random).tolist()
    views = families.small.shape[2] + 1
    pictures, labels = [], []
    for row in rows:
        for who in range(SIBLINGS):
            for view in torch.randperm(views, generator=random)[:2].tolist():
                source = families.large[row, who] if view == 0 else families.small[row, who, view - 1]
                picture = torch.from_numpy(source).permute(2, 0, 1)[None].float() / 127.5 - 1
                pictures.append(resize(picture, ENCODER_SIZE))
                labels.append(families.looks[row, who])
    images = disturb(torch.cat(pictures), random, 4).to(device)
    looks = torch.from_numpy(np.stack(labels)).long().to(device)
    _, identity = torch.unique(looks, dim=0, return_inverse=True)
    pooled = encoder(images).pooler_output.flatten(1)
    return supervised_contrast(F.normalize(pooled, dim=-1), identity) + 0.5 * heads.loss(pooled, looks)


def captions_for(contents: list[Attributes], rng: np.random.Generator) -> list[str]:
    """A caption of each content, then the full prompt of each with one attribute changed: a hard negative."""
    texts = [caption(content, rng, rare=0.2) for content in contents]
    for content in contents:
        name = tuple(ATTRIBUTES)[int(rng.choice(len(ATTRIBUTES), p=CHANGED))]
        others = [value for value in ATTRIBUTES[name] if value != getattr(content, name)]
        texts.append(
            prompt(replace(content, **{name: others[int(rng.integers(len(others)))]}), explicit=name == "pattern")
        )
    return texts


def caption_loss(
    clip: CLIPModel,
    heads: Heads,
    images: Tensor,
    contents: list[Attributes],
    texts: list[str],
    tokenizer: CLIPTokenizer,
) -> Tensor:
    """CLIP's loss with several right answers: every caption that holds of a picture is right for it.

    images (n, 3, h, w) show `contents`; `texts` may be more than n.
    """
    device = images.device
    pooled = clip.vision_model(pixel_values=resize(images, CLIP_SIZE)).pooler_output
    pictures = F.normalize(clip.visual_projection(pooled), dim=-1)
    captions = text_features(clip, tokenize(tokenizer, texts).to(device))
    scores = pictures @ captions.T * clip.logit_scale.exp().clamp_max(50)
    true = torch.from_numpy(truths(contents, texts)).float().to(device)
    labels = torch.tensor([labels_of(content) for content in contents], device=device)
    return (right_answers(scores, true) + right_answers(scores.T, true.T)) / 2 + 0.5 * heads.loss(pooled, labels)


def right_answers(scores: Tensor, true: Tensor) -> Tensor:
    """Mean over rows of the cross entropy towards their right answers alike, (n, m); rows without any are left out."""
    answered = true.sum(1) > 0
    scores, true = scores[answered], true[answered]
    return -(scores.log_softmax(1) * true).sum(1).div(true.sum(1)).mean()
