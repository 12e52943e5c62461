"""Aspect-ratio buckets: which rectangles there are, which one a picture goes to, and the order of samples by bucket."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Hashable, Sequence

import torch

from train.data.options import DataOptions

Size = tuple[int, int]
"""Width and height in pixels."""
LIMIT = 2.0
"""Longer side by shorter side, of the rectangles that are made."""


def buckets_for(options: DataOptions, resolution: int, multiple: int = 1) -> list[Size]:
    """The sizes that pictures are cut to: the square, or what the options ask for. Raises ValueError."""
    if resolution % multiple:
        near = max(resolution // multiple, 1) * multiple
        raise ValueError(f"--resolution {resolution} must be a multiple of {multiple} for this base, such as {near}")
    if options.aspect_ratio_buckets is not None:
        return parse(options.aspect_ratio_buckets, multiple)
    return made(resolution, multiple) if options.use_aspect_ratio_buckets else [(resolution, resolution)]


def parse(text: str, multiple: int) -> list[Size]:
    """`"height,width;height,width"`, as in diffusers. Raises ValueError with the part that is wrong."""
    flag, found = f"--aspect_ratio_buckets {text!r}", []
    for part in text.split(";"):
        sides = [side.strip() for side in part.split(",")]
        if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise ValueError(f'{flag}: {part.strip()!r} is not a pair "height,width" of pixels')
        for name, side in zip(("height", "width"), map(int, sides), strict=True):
            if side % multiple:
                near = max(side // multiple, 1) * multiple
                raise ValueError(f"{flag}: {name} {side} must be a multiple of {multiple} for this base, as {near} is")
        found.append((int(sides[1]), int(sides[0])))
    return list(dict.fromkeys(found))


def made(resolution: int, multiple: int) -> list[Size]:
    """The square, and the rectangles of at most its area in steps of about 64 pixels, up to twice as long as wide."""
    step = max(1, round(min(64, resolution / 8) / multiple)) * multiple
    found = {(resolution, resolution): None}
    for width in range(step * math.ceil(resolution / LIMIT / step), resolution, step):
        height = resolution**2 // width // step * step
        if height / width <= LIMIT:
            found |= {(width, height): None, (height, width): None}
    return sorted(found)


def nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose shape a picture of `size` has to be cut least for; of several, the largest."""
    shape = math.log(size[0] / size[1])
    return min(buckets, key=lambda bucket: (abs(math.log(bucket[0] / bucket[1]) - shape), -bucket[0] * bucket[1]))


def row_seed(seed: int, number: int, stream: str = "") -> int:
    """Seed of everything drawn for the `number`-th training sample of a run; it depends on nothing else."""
    text = f"{seed}/{number}{stream and '/'}{stream}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def spread(seed: int, number: int, stream: str = "") -> float:
    """Where in [0, 1) the noise level of the `number`-th sample lies: steps of the golden ratio from a seeded start.

    Uniform as independent draws are, but any few samples in a row cover the range evenly: less noisy gradients.
    """
    return math.fmod(row_seed(seed, -1, stream) / 2**32 + number * (math.sqrt(5) - 1) / 2, 1)


@functools.lru_cache(maxsize=64)
def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The numbers below `count` in the order drawn for an epoch of a run."""
    generator = torch.Generator().manual_seed(row_seed(seed, -2 - epoch))
    return torch.randperm(count, generator=generator).tolist()


class Order:
    """Which entry is the n-th sample of a run: a pure function, the same on every process and after a resume.

    `group` samples in a row, which are those of one optimizer step over all processes, share a bucket. An epoch gives
    each bucket as many groups as it has entries, in an order drawn for the epoch; a bucket hands out its entries in
    rounds, each once per round. So over an epoch every entry is seen `group` times, and with a single bucket each
    entry comes once before any comes again.
    """

    def __init__(self, buckets: Sequence[Hashable], group: int = 1) -> None:
        self.buckets = list(buckets)
        self.group = group
        self.members: dict[Hashable, list[int]] = {}
        for entry, bucket in enumerate(self.buckets):
            self.members.setdefault(bucket, []).append(entry)
        self._turns = functools.lru_cache(maxsize=4)(self._turns_of)

    def __call__(self, number: int, seed: int) -> int:
        group, place = divmod(number, self.group)
        epoch, position = divmod(group, len(self.buckets))
        bucket, before = self._turns(seed, epoch)[position]
        members = self.members[bucket]
        sample = (epoch * len(members) + before) * self.group + place
        turn, index = divmod(sample, len(members))
        return members[shuffled(len(members), seed, turn)[index]]

    def _turns_of(self, seed: int, epoch: int) -> list[tuple[Hashable, int]]:
        """For each group of an epoch its bucket, and how many groups of that bucket came before in the epoch."""
        count: dict[Hashable, int] = dict.fromkeys(self.members, 0)
        found = []
        for entry in shuffled(len(self.buckets), seed, epoch):
            bucket = self.buckets[entry]
            found.append((bucket, count[bucket]))
            count[bucket] += 1
        return found
