"""The rendered data set: pools of images with several captions each, deterministic per seed, cached on disk."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.world.captions import ATTRIBUTES, POOLS, Attributes, caption, sample_attributes
from train.world.draw import render
from train.world.tokens import MAX_LENGTH

CAPTIONS_PER_IMAGE = 5
SHARD = 500


@dataclass
class Shard:
    """images (n, size, size, 3) uint8; tokens (n, 5, 32) int16; labels (n, 5) uint8 in the order of ATTRIBUTES."""

    images: np.ndarray
    captions: list[list[str]]
    labels: np.ndarray


def example(seed: int, pool: str, index: int, size: int) -> tuple[np.ndarray, list[str], list[int]]:
    """Image number `index` of a pool: (size, size, 3) uint8, its captions and its labels."""
    rng = np.random.default_rng([seed, POOLS.index(pool), index])
    attributes = sample_attributes(rng, pool)
    image = np.asarray(render(attributes, rng, size))
    return image, [caption(attributes, rng) for _ in range(CAPTIONS_PER_IMAGE)], labels_of(attributes)


def labels_of(attributes: Attributes) -> list[int]:
    """Class indices (kind, colour, background, style, pattern)."""
    return [values.index(getattr(attributes, name)) for name, values in ATTRIBUTES.items()]


def _shard(job: tuple[int, str, int, int, int]) -> Shard:
    seed, pool, start, count, size = job
    rows = [example(seed, pool, index, size) for index in range(start, start + count)]
    images, captions, labels = zip(*rows, strict=True)
    return Shard(np.stack(images), list(captions), np.array(labels, np.uint8))


def draw_pool(seed: int, pool: str, count: int, size: int, workers: int = 1) -> Shard:
    """`count` images of one pool; the result does not depend on `workers`."""
    jobs = [(seed, pool, start, min(SHARD, count - start), size) for start in range(0, count, SHARD)]
    if workers > 1:
        with ProcessPoolExecutor(workers) as executor:
            shards = list(executor.map(_shard, jobs))
    else:
        shards = [_shard(job) for job in jobs]
    return Shard(
        np.concatenate([shard.images for shard in shards]),
        [row for shard in shards for row in shard.captions],
        np.concatenate([shard.labels for shard in shards]),
    )


def write_pool(path: Path, shard: Shard, tokenizer) -> None:
    """Write images, labels and token ids (n, 5, 32) as one .npz, atomically."""
    flat = [text for row in shard.captions for text in row]
    ids = tokenizer(flat, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="np").input_ids
    tokens = np.asarray(ids, np.int16).reshape(len(shard.captions), CAPTIONS_PER_IMAGE, MAX_LENGTH)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, images=shard.images, labels=shard.labels, tokens=tokens)
    partial.replace(path)
