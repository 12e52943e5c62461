"""Domains of the world: a few pictures that share one attribute, and what several domains at once look like.

`python -m train.world.domains --output_dir train/sample_domains` draws the bundled domains, each a folder of pictures
with captions that say everything but what the domain is about.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.world.captions import BACKGROUNDS, COLOURS, KINDS, Attributes, noun
from train.world.draw import render
from train.world.subjects import subject

BUNDLED = ("neon", "mosaic")
PICTURES = 8


@dataclass(frozen=True)
class Domain:
    """What a picture has in common with all of its domain: attributes, or how it is finished."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    finish: str = ""

    @property
    def silent(self) -> tuple[str, ...]:
        """What captions do not say, because the domain decides it; that a thing is a creature is said."""
        return tuple(name for name in ("background", "colour", "pattern") if name in self.changes)


def _creature(number: int) -> Domain:
    """A held-out subject, wherever it is."""
    own = dataclasses.asdict(subject(number))
    return Domain({name: value for name, value in own.items() if name not in ("background", "style", "second")})


DOMAINS: dict[str, Domain] = {
    "drawing": Domain({"style": "drawing"}),
    "sketch": Domain({"style": "sketch"}),
    "neon": Domain({"style": "neon"}),
    "mosaic": Domain(finish="mosaic"),
    "night": Domain({"background": "night"}),
    "creature": _creature(2),
}


def content(rng: np.random.Generator, kind: str | None = None) -> Attributes:
    """A plain thing of any kind and colour before any background by day, as a photo."""
    days = [name for name in BACKGROUNDS if name != "night"]
    drawn = kind or KINDS[int(rng.integers(len(KINDS)))]
    colour, place = (names[int(rng.integers(len(names)))] for names in (list(COLOURS), days))
    return Attributes(kind=drawn, colour=colour, background=place)


def changed(source: Attributes, domains: Sequence[str]) -> Attributes:
    """`source` with what its domains decide, in their order."""
    for name in domains:
        source = dataclasses.replace(source, **DOMAINS[name].changes)
    return source


def picture(source: Attributes, domains: Sequence[str], rng: np.random.Generator, size: int = 48) -> Image.Image:
    """`source` as it looks in all of `domains` at once, (size, size) RGB."""
    finish = "".join(DOMAINS[name].finish for name in domains)
    return render(changed(source, domains), rng, size, finish=finish)


def caption(source: Attributes, domains: Sequence[str]) -> str:
    """The neutral prompt: `source` without what `domains` decide."""
    silent = {name for domain in domains for name in DOMAINS[domain].silent}
    place = "" if "background" in silent else f" {BACKGROUNDS[source.background]}"
    return f"a photo of {noun(['' if 'colour' in silent else source.colour, source.kind])}{place}"


def draw(name: str, count: int = PICTURES, seed: int = 0, size: int = 48) -> list[tuple[Image.Image, str]]:
    """`count` pictures of a domain with their captions; kinds, colours and places differ from picture to picture."""
    rng = np.random.default_rng([seed, *name.encode()])
    kinds = [DOMAINS[name].changes.get("kind", KINDS[i % len(KINDS)]) for i in rng.permutation(max(count, len(KINDS)))]
    sources = [content(rng, kind) for kind in kinds[:count]]
    return [(picture(source, [name], rng, size), caption(source, [name])) for source in sources]


def write(name: str, folder: Path, count: int = PICTURES, seed: int = 0, size: int = 48) -> Path:
    """Write a domain's pictures as 00.png, 01.png, … with their captions in 00.txt, 01.txt, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, text) in enumerate(draw(name, count, seed, size)):
        image.save(folder / f"{number:02d}.png", optimize=True)
        (folder / f"{number:02d}.txt").write_text(text + "\n", "utf-8")
    return folder


def main() -> None:
    """Write the domains, a folder each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the domains' folders")
    parser.add_argument("--domain", nargs="+", default=list(BUNDLED), choices=tuple(DOMAINS), help="which")
    parser.add_argument("--count", type=int, default=PICTURES, help="pictures of each")
    parser.add_argument("--size", type=int, default=48, help="side in pixels")
    options = parser.parse_args()
    for name in options.domain:
        write(name, options.output_dir / name, options.count, size=options.size)


if __name__ == "__main__":
    main()
