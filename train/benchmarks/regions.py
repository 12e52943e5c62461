"""Do masks keep two subjects apart? Each trained on its own, then one left and one right in one picture.

Plain blending beside adapters with masks, on pairs of held-out subjects. Each half of a picture is cut out around its
creature and read by the ruler's image encoder: subject fidelity to the subject that belongs there, to the other one,
and class leak: where one adapter acts beside an ordinary creature, what that creature gains in fidelity to its subject
over the base's from the same seed. Intervals are over pairs × prompts × seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from diffusion_adapters import AdapterWeight, use_adapters
from diffusion_adapters.options import Options, option
from train.benchmarks.blending import PROTOCOL, SIDE, TOKENS, draw, halves, load_base, sheet, subject_of, train_subject
from train.data import DataOptions, read_folder
from train.output import write
from train.ruler import Encoder, Scores
from train.ruler.metrics import fidelity
from train.script import command, read_options
from train.world.captions import BACKGROUNDS
from train.world.draw import render
from train.world.subjects import subject as attributes_of

PAIRS = ((1, 2), (3, 4), (5, 6))
PLACES = ("meadow", "beach", "night", "studio")
CUT = 28
"""Side of the square that holds a half's creature, in pixels."""
TOP = 11
"""Its upper edge. Of 12 squares the one by which pictures of the world itself are known best."""
METRICS = {
    "left": ("subject fidelity, left ↑", "of the left half with its own subject"),
    "right": ("subject fidelity, right ↑", "of the right half with its own subject"),
    "other": ("the other subject ↓", "fidelity of each half with the subject of the other"),
    "class_leak": (
        "class leak ↓",
        "what an ordinary creature beside a subject gains in fidelity with it over the base's",
    ),
}
Pictures = list[list[Image.Image]]


def prompts(left: str, right: str) -> list[str]:
    """Two creatures in every place, called by a token, or by none."""
    left, right = (f"a {token} creature".replace("  ", " ") for token in (left, right))
    return [f"a photo of {left} and {right} {BACKGROUNDS[place]}" for place in PLACES]


Blend = Callable[[int], Any]
BLENDS: dict[str, Blend] = {
    "plain": lambda half: 1.0,
    "plain, weights 0.5": lambda half: 0.5,
    "masks": lambda half: AdapterWeight(mask=halves()[half]),
}
"""Row -> the weight of the adapter of a half, 0 left and 1 right."""


@dataclass(frozen=True, kw_only=True)
class RegionsOptions(Options):
    title: ClassVar[str] = "regions"
    work_dir: Path = option(Path("runs/regions"), "folder of drawn subjects and their adapters")  # noqa: RUF009
    adapter: str = option("wara", "family that learns the subjects")
    pairs: int = option(len(PAIRS), "how many pairs of subjects", ge=1, le=len(PAIRS))
    seeds: int = option(4, "pictures of each prompt", ge=1)
    threads: int = option(1, "CPU threads; more than one stalls on a busy machine", ge=1)
    output_dir: Path = option(Path("regions"), "folder for regions.md, .json and .png")  # noqa: RUF009


@dataclass
class Pair:
    """What was drawn for two subjects: by row, with both adapters, and with one beside an ordinary creature."""

    real: list[list[Image.Image]]
    together: dict[str, Pictures]
    beside: dict[str, tuple[Pictures, Pictures]]
    """The subject left, then the subject right."""


def draw_pair(numbers: tuple[int, int], options: RegionsOptions) -> Pair:
    """Train what is not trained, then draw every row of the table."""
    subjects = [subject_of(number, token) for number, token in zip(numbers, TOKENS, strict=True)]
    files = [train_subject(subject, options.work_dir, options.adapter) for subject in subjects]
    pipe = load_base(left=files[0], right=files[1])
    seeds = range(PROTOCOL.first_seed, PROTOCOL.first_seed + options.seeds)
    both, one = prompts(*TOKENS), (prompts(TOKENS[0], ""), prompts("", TOKENS[1]))
    together = {"base": draw(pipe, both, seeds)}
    beside = {"base": (draw(pipe, one[0], seeds), draw(pipe, one[1], seeds))}
    for row, weight in BLENDS.items():
        with use_adapters(pipe, ["left", "right"], [weight(0), weight(1)]):
            together[row] = draw(pipe, both, seeds)
        alone = []
        for half, name in enumerate(("left", "right")):
            with use_adapters(pipe, name, weight(half)):
                alone.append(draw(pipe, one[half], seeds))
        beside[row] = (alone[0], alone[1])
    real = [_pictures(options.work_dir / "subjects" / subject.name) for subject in subjects]
    return Pair(real, together, beside)


def _pictures(folder: Path) -> list[Image.Image]:
    found = read_folder(DataOptions(instance_data_dir=folder, center_crop=True), SIDE, 0)
    return [example.images[0] for example in found.examples]


def cut(image: Image.Image, half: int) -> Image.Image:
    """The square around the creature of a half, 0 left and 1 right."""
    left = half * (SIDE - CUT)
    return image.crop((left, TOP, left + CUT, TOP + CUT)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


class Eye:
    """Reads the fidelity of halves with the two subjects of a pair."""

    def __init__(self, encoder: Encoder, real: Sequence[Sequence[Image.Image]]) -> None:
        self.encoder, self.real = encoder, [encoder.images(pictures) for pictures in real]

    def read(self, pictures: Pictures, half: int, subject: int) -> np.ndarray:
        """(prompts, seeds): fidelity of the halves of pictures with a subject."""
        seen = self.encoder.images([cut(image, half) for row in pictures for image in row])
        return fidelity(seen.unflatten(0, (len(pictures), -1)), self.real[subject])

    def together(self, pictures: Pictures) -> dict[str, np.ndarray]:
        """What pictures of both subjects are measured by."""
        other = (self.read(pictures, 0, 1) + self.read(pictures, 1, 0)) / 2
        return {"left": self.read(pictures, 0, 0), "right": self.read(pictures, 1, 1), "other": other}

    def leak(self, pictures: tuple[Pictures, Pictures], base: tuple[Pictures, Pictures]) -> np.ndarray:
        """Class leak, the mean of both sides."""
        gains = [self.read(now[s], 1 - s, s) for now in (pictures, base) for s in (0, 1)]
        return (gains[0] - gains[2] + gains[1] - gains[3]) / 2


def measure(options: RegionsOptions) -> tuple[dict[str, Scores], list[Pair]]:
    """Scores by row, each (pairs, prompts, seeds), and what was drawn."""
    torch.set_num_threads(options.threads)
    encoder = Encoder(PROTOCOL.image_encoder)
    pairs, found = [], []
    for numbers in PAIRS[: options.pairs]:
        pairs.append(draw_pair(numbers, options))
        eye = Eye(encoder, pairs[-1].real)
        rows = {row: eye.together(pictures) for row, pictures in pairs[-1].together.items()}
        for row, pictures in pairs[-1].beside.items():
            rows[row]["class_leak"] = eye.leak(pictures, pairs[-1].beside["base"])
        rows["drawn by the world itself"] = eye.together(rendered(numbers, options.seeds))
        rows["masks - plain, paired"] = {name: value - rows["plain"][name] for name, value in rows["masks"].items()}
        found.append(rows)
    scores = {
        row: Scores({name: np.stack([one[row][name] for one in found]) for name in values})
        for row, values in found[0].items()
    }
    return scores, pairs


def rendered(numbers: tuple[int, int], seeds: int) -> Pictures:
    """The two subjects as the world draws them: what could be reached, cut in the same way."""
    left, right = (attributes_of(number) for number in numbers)
    contents = [dataclasses.replace(left, background=place) for place in PLACES]
    return [[render(one, np.random.default_rng(seed), SIDE, beside=right) for seed in range(seeds)] for one in contents]


def table(scores: dict[str, Scores]) -> str:
    """The scores as Markdown."""
    lines = ["| | " + " | ".join(title for title, _ in METRICS.values()) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for row, own in scores.items():
        cells = [str(own.interval(name)) if name in own.values else "" for name in METRICS]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_results(options: RegionsOptions, scores: dict[str, Scores], pairs: list[Pair]) -> None:
    """Write regions.md, regions.json and regions.png: the first seed of every prompt and pair."""
    facts = {name: str(value) for name, value in vars(options).items() if name in ("adapter", "pairs", "seeds")}
    facts |= {
        "prompts": prompts(*TOKENS),
        "metrics": {n: m for n, (_, m) in METRICS.items()},
    }
    data = json.dumps({**facts, "rows": {row: own.as_json() for row, own in scores.items()}}, indent=1)
    rows = [("the subjects", [image for pair in pairs for pictures in pair.real for image in pictures[:2]])]
    rows += [(row, [images[0] for pair in pairs for images in pair.together[row]]) for row in pairs[0].together]
    picture = sheet(rows, SIDE)
    out = options.output_dir
    write(out / "regions.md", lambda path: path.write_text(table(scores) + "\n", "utf-8"))
    write(out / "regions.json", lambda path: path.write_text(data + "\n", "utf-8"))
    write(out / "regions.png", lambda path: picture.save(path, "PNG", optimize=True))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    options = read_options(RegionsOptions, __doc__, "benchmark.py --regions", argv)
    scores, pairs = measure(options)
    write_results(options, scores, pairs)
    print(table(scores))
