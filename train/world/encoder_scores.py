"""What the ruler's encoders can tell apart: held-out subjects in other places; every attribute of fresh pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, ResNetModel

from train.world.captions import ATTRIBUTES, BACKGROUNDS, COLOURS, Attributes, prompt, sample_attributes
from train.world.draw import render
from train.world.encoders import identity_features, image_features, text_features, tokenize
from train.world.gate import to_tensor
from train.world.subjects import SUBJECTS, in_context, subject, subject_images

FRESH = 4242  # seed of everything measured here
VAE = Callable[[Tensor], Tensor]


@torch.no_grad()
def _features(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([encode(part) for part in images.split(64)])


def _other(choices: tuple[str, ...], *taken: str) -> str:
    return next(choice for choice in choices if choice not in taken)


def stages(number: int) -> dict[str, Attributes]:
    """A subject, and what an adapter draws that learned it in part, from the nearest to the farthest."""
    thing = subject(number)
    first = _other(tuple(COLOURS), thing.colour, thing.colour2)
    second = _other(tuple(reversed(COLOURS)), thing.colour, thing.colour2, first)
    return {
        "same subject": thing,
        "its ears are others": replace(thing, ears="pointy"),
        "its second colour is another": replace(thing, colour2=second),
        "right shape, wrong colours": replace(thing, colour=first, colour2=second),
        "right colours, a common shape": replace(thing, body="round", ears="pointy"),
        "one right colour, a common shape": replace(thing, body="round", ears="pointy", pattern="plain", colour2=""),
    }


def _queries(thing: Attributes, number: int) -> list[Image.Image]:
    return [in_context(thing, place, 10_000 * (number + 1) + i) for i, place in enumerate(BACKGROUNDS)]


def auc(higher: Tensor, lower: Tensor) -> float:
    """P(a value of `higher` exceeds one of `lower`), ties by half."""
    higher, order = higher.flatten(), lower.flatten().sort().values
    wins = torch.searchsorted(order, higher) + torch.searchsorted(order, higher, right=True)
    return wins.double().mean().item() / (2 * len(order))


def identity_scores(encoder: ResNetModel, vae: VAE) -> dict:
    """Cosines to a subject's five bundled pictures, averaged as the ruler does, of eight renders in other places each.

    `real` and `vae` hold: top1 (share of renders nearest to their own subject among 24), auc (same against another
    subject, single pairs), nearest_other (mean cosine of the most similar other subject), cosine (mean of each kind of
    picture), auc_same_against (P(a picture of the subject scores higher) than one of that kind).
    """
    bundled = torch.cat([to_tensor(subject_images(number)) for number in range(SUBJECTS)])
    encode = partial(identity_features, encoder)
    references = _features(encode, bundled).view(SUBJECTS, 5, -1)
    things = [stages(number) for number in range(SUBJECTS)]
    pictures = {
        kind: torch.cat([to_tensor(_queries(thing[kind], number)) for number, thing in enumerate(things)])
        for kind in things[0]
    }
    pictures["random creature"] = to_tensor([_creature(index) for index in range(64)])
    through = {kind: _features(vae, x) for kind, x in pictures.items()}
    return {
        source: _compare({kind: _features(encode, x) for kind, x in part.items()}, references)
        for source, part in (("real", pictures), ("vae", through))
    }


def _creature(index: int) -> Image.Image:
    content = sample_attributes(np.random.default_rng([FRESH, index]), "patterned", "creature")
    return render(content, np.random.default_rng([FRESH, 1, index]))


def _compare(features: dict[str, Tensor], references: Tensor) -> dict:
    """Features of each kind of picture, (24 · 8, d) in the order of the subjects, and references (24, 5, d)."""
    centres = references.mean(1)  # the mean cosine to five unit vectors is the product with their mean
    same = features["same subject"].unflatten(0, (SUBJECTS, -1))
    table = torch.einsum("nqd,md->nmq", same, centres)
    pairs = torch.einsum("nqd,mrd->nmqr", same, references)
    own = torch.eye(SUBJECTS, dtype=torch.bool)
    cosines = {
        kind: torch.einsum("nqd,nd->nq", x.unflatten(0, (SUBJECTS, -1)), centres)
        for kind, x in features.items()
        if kind != "random creature"
    }
    cosines["random creature"] = features["random creature"] @ centres.T
    cosines["another subject"] = table[~own]
    mine = cosines.pop("same subject")
    return {
        "top1": (table.argmax(1) == torch.arange(SUBJECTS)[:, None]).float().mean().item(),
        "auc": auc(pairs[own], pairs[~own]),
        "nearest_other": table.masked_fill(own[..., None], -torch.inf).amax(1).mean().item(),
        "cosine": {kind: x.mean().item() for kind, x in {"same subject": mine, **cosines}.items()},
        "auc_same_against": {kind: auc(mine, x) for kind, x in cosines.items()},
    }


def _full(content: Attributes, name: str, value: str) -> str:
    return prompt(replace(content, **{name: value}), explicit=name == "pattern")


def _bare(content: Attributes, name: str, value: str) -> str:
    """The shortest caption that names the attribute."""
    kind = content.kind
    return {
        "kind": f"a {value}",
        "colour": f"a {value} {kind}",
        "background": f"a {kind} {BACKGROUNDS.get(value)}",
        "style": f"a {value} of a {kind}",
        "pattern": f"a {value} {kind}",
    }[name]


@torch.no_grad()
def zero_shot(
    clip: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, contents: list[Attributes]
) -> dict[str, dict[str, float]]:
    """Share of pictures whose true value scores highest: `full` prompts with one attribute changed, and `bare` ones."""
    pictures = _features(lambda x: image_features(clip, x), images)
    scores: dict[str, dict[str, float]] = {}
    for form, words in (("full", _full), ("bare", _bare)):
        scores[form] = {}
        for name, values in ATTRIBUTES.items():
            texts = [words(content, name, value) for content in contents for value in values]
            distinct = list(dict.fromkeys(texts))
            features = text_features(clip, tokenize(tokenizer, distinct))
            rows = torch.tensor([distinct.index(text) for text in texts]).view(len(contents), len(values))
            best = torch.einsum("nd,nvd->nv", pictures, features[rows]).argmax(1)
            true = torch.tensor([values.index(getattr(content, name)) for content in contents])
            scores[form][name] = (best == true).float().mean().item()
    return scores


@torch.no_grad()
def subject_places(clip: CLIPModel, tokenizer: CLIPTokenizer) -> float:
    """Share of held-out subjects' renders whose place is read right from `a photo of sks creature <place>`."""
    texts = [f"a photo of sks creature {phrase}" for phrase in BACKGROUNDS.values()]
    features = text_features(clip, tokenize(tokenizer, texts))
    right = []
    for number in range(SUBJECTS):
        pictures = _features(lambda x: image_features(clip, x), to_tensor(_queries(subject(number), number)))
        right.append((pictures @ features.T).argmax(1) == torch.arange(len(texts)))
    return torch.cat(right).float().mean().item()


@torch.no_grad()
def rare_token_shift(clip: CLIPModel, tokenizer: CLIPTokenizer, contents: list[Attributes]) -> float:
    """Mean cosine of a prompt's features with and without a rare token: 1 where the token changes nothing."""
    plain = text_features(clip, tokenize(tokenizer, [prompt(content) for content in contents]))
    token = text_features(clip, tokenize(tokenizer, [prompt(content, "sks") for content in contents]))
    return (plain * token).sum(1).mean().item()
