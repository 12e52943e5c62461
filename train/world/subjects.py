"""Novel subjects for personalization: creatures built from parts that training never saw.

`python -m train.world.subjects --output_dir train/sample_subject` draws the bundled sample, five pictures of one
two-tone creature for `--instance_prompt "a photo of sks creature"`.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from train.world.captions import BACKGROUNDS, COLOURS, EYES, HELD_OUT, MOUTHS, Attributes
from train.world.draw import render

SUBJECTS = 24
SAMPLE = Attributes(
    kind="creature", colour="blue", colour2="yellow", pattern="belly", body="boxy", ears="horned", mouth="smiling"
)


def subject(number: int) -> Attributes:
    """Held-out subject 0..23: an unseen body, unseen ears and two colours; number 0 is the bundled sample."""
    if not 0 <= number < SUBJECTS:
        raise ValueError(f"subject {number} does not exist; numbers run from 0 to {SUBJECTS - 1}")
    if number == 0:
        return SAMPLE
    combinations = list(product(HELD_OUT["body"], HELD_OUT["ears"], HELD_OUT["pattern"]))
    order = np.random.default_rng(2024).permutation(len(combinations))
    body, ears, pattern = combinations[order[number]]
    rng = np.random.default_rng([2024, number])
    first, second = rng.choice(len(COLOURS), 2, replace=False)
    names = list(COLOURS)
    return Attributes(
        kind="creature",
        colour=names[first],
        colour2=names[second],
        pattern=pattern,
        body=body,
        ears=ears,
        eyes=EYES[int(rng.integers(len(EYES)))],
        mouth=MOUTHS[int(rng.integers(len(MOUTHS)))],
    )


def in_context(attributes: Attributes, background: str, seed: int, size: int = 48) -> Image.Image:
    """The same subject in another place: (size, size) RGB; position and scale come from the seed."""
    values = {name: getattr(attributes, name) for name in Attributes.__dataclass_fields__}
    values["background"] = background
    return render(Attributes(**values), np.random.default_rng(seed), size)


def subject_images(number: int, count: int = 5, size: int = 96) -> list[Image.Image]:
    """`count` pictures of a subject, each before another background."""
    names = list(BACKGROUNDS)
    start = number * 3
    return [in_context(subject(number), names[(start + i) % len(names)], 100 * number + i, size) for i in range(count)]


def main() -> None:
    """Write one subject's pictures as 00.png, 01.png, …"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the pictures; made if missing")
    parser.add_argument("--subject", type=int, default=0, help="held-out subject, 0 to 23")
    parser.add_argument("--count", type=int, default=5, help="number of pictures")
    parser.add_argument("--size", type=int, default=96, help="side in pixels")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(subject_images(options.subject, options.count, options.size)):
        image.save(options.output_dir / f"{index:02d}.png")


if __name__ == "__main__":
    main()
