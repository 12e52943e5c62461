"""Families of look-alikes for the identity encoder: each thing in several places, its siblings one attribute away.

Held-out parts are never drawn here, so that held-out subjects measure how far the encoder generalizes.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from train.world.captions import (
    BACKGROUNDS,
    BODIES,
    COLOURS,
    EARS,
    ENCODER_ONLY,
    EYES,
    KINDS,
    MOUTHS,
    PATTERNS,
    STYLES,
    TAILS,
    Attributes,
)
from train.world.draw import render

SIBLINGS = 3
VIEWS = 4  # one at twice the size, the others small, of which the last passes through the VAE
CREATURES = 0.75
LOOKS = {
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "pattern": (*PATTERNS, *ENCODER_ONLY["pattern"]),
    "colour2": ("", *COLOURS),
    "body": (*BODIES, *ENCODER_ONLY["body"]),
    "ears": (*EARS, *ENCODER_ONLY["ears"]),
    "eyes": EYES,
    "mouth": MOUTHS,
    "tail": TAILS,
}
PARTS = ("body", "ears", "eyes", "mouth", "tail")
_STREAM = 31  # apart from the streams of the pools, which are numbered by pool


@dataclass
class Families:
    """Pictures uint8 of n families: large (n, 3, 96, 96, 3), small (n, 3, 3, 48, 48, 3); looks (n, 3, 9) int8.

    Looks are indices in the order of LOOKS; -1 where a thing has no such part.
    """

    large: np.ndarray
    small: np.ndarray
    looks: np.ndarray


def _pick(rng: np.random.Generator, choices: tuple[str, ...], unlike: str | None = None) -> str:
    left = [choice for choice in choices if choice != unlike]
    return left[int(rng.integers(len(left)))]


def sample_thing(rng: np.random.Generator) -> Attributes:
    """A thing without a place: mostly creatures, most of them in two colours."""
    kind = "creature" if rng.random() < CREATURES else _pick(rng, KINDS[:-1])
    colour, pattern = _pick(rng, LOOKS["colour"]), _pick(rng, LOOKS["pattern"])
    two = pattern not in PATTERNS or (pattern != "plain" and rng.random() < 0.6)
    return Attributes(
        kind=kind,
        colour=colour,
        pattern=pattern,
        colour2=_pick(rng, LOOKS["colour"], colour) if two else "",
        **{part: _pick(rng, LOOKS[part]) for part in PARTS},
    )


def sibling(thing: Attributes, rng: np.random.Generator) -> Attributes:
    """The same thing but for one attribute, or with its two colours exchanged."""
    names = ["colour", "pattern", *(PARTS if thing.kind == "creature" else ())]
    if thing.colour2:
        names += ["colour2", "exchanged"]
    name = _pick(rng, tuple(names))
    if name == "exchanged":
        return replace(thing, colour=thing.colour2, colour2=thing.colour)
    taken = thing.colour if name == "colour2" else thing.colour2 if name == "colour" else None
    choices = tuple(value for value in LOOKS[name] if value and value != taken)
    changed = replace(thing, **{name: _pick(rng, choices, getattr(thing, name))})
    if changed.pattern == "plain":
        return replace(changed, colour2="")
    if changed.pattern not in PATTERNS and not changed.colour2:
        return replace(changed, colour2=_pick(rng, LOOKS["colour"], changed.colour))
    return changed


def family(rng: np.random.Generator) -> list[Attributes]:
    """SIBLINGS different things: one, and others one attribute away from it."""
    things = [sample_thing(rng)]
    while len(things) < SIBLINGS:
        if (other := sibling(things[0], rng)) not in things:
            things.append(other)
    return things


def looks_of(thing: Attributes) -> list[int]:
    """What a thing looks like, as indices in the order of LOOKS."""
    creature = thing.kind == "creature"
    return [
        -1 if name in PARTS and not creature else values.index(getattr(thing, name)) for name, values in LOOKS.items()
    ]


def _view(thing: Attributes, rng: np.random.Generator, size: int) -> np.ndarray:
    style = STYLES[int(rng.choice(3, p=(0.76, 0.14, 0.1)))]
    place = _pick(rng, tuple(BACKGROUNDS))
    return np.asarray(render(replace(thing, style=style, background=place), rng, size))


def draw_family(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Family number `index`: large, small and looks of its siblings; places, styles and positions at random."""
    rng = np.random.default_rng([seed, _STREAM, index])
    things = family(rng)
    large = [_view(thing, rng, 2 * size) for thing in things]
    small = [[_view(thing, rng, size) for _ in range(VIEWS - 1)] for thing in things]
    return np.stack(large), np.array(small), np.array([looks_of(thing) for thing in things], np.int8)


def _draw(job: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw_family(*job)


def draw_families(seed: int, count: int, size: int, workers: int = 1) -> Families:
    """`count` families; the result does not depend on `workers`."""
    jobs = [(seed, index, size) for index in range(count)]
    if workers > 1:
        with ProcessPoolExecutor(workers) as executor:
            rows = list(executor.map(_draw, jobs, chunksize=50))
    else:
        rows = [_draw(job) for job in jobs]
    return Families(*(np.stack(column) for column in zip(*rows, strict=True)))


def write_families(path: Path, families: Families) -> None:
    """Write as one .npz, atomically."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, large=families.large, small=families.small, looks=families.looks)
    partial.replace(path)


def read_families(path: Path) -> Families:
    """What `write_families` wrote."""
    with np.load(path) as arrays:
        return Families(arrays["large"], arrays["small"], arrays["looks"])
