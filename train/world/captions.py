"""What the drawn world contains, and how its pictures are described: attributes -> prompt and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("ball", "star", "heart", "house", "tree", "car", "fish", "mushroom", "cup", "creature")
COLOURS = {
    "red": (220, 38, 38), "orange": (250, 140, 20), "yellow": (250, 220, 40), "green": (40, 165, 60),
    "blue": (40, 90, 225), "purple": (130, 50, 170), "pink": (250, 130, 185), "white": (245, 245, 245),
}  # fmt: skip
PATTERNS = ("plain", "striped", "spotted", "checkered")
STYLES = ("photo", "drawing", "mosaic")
BACKGROUNDS = {
    "meadow": "in a meadow", "beach": "on a beach", "snow": "in the snow", "night": "at night",
    "city": "in a city", "underwater": "under water", "desert": "in a desert", "studio": "in a studio",
}  # fmt: skip
BODIES = ("round", "tall", "wide")
EARS = ("none", "pointy", "floppy", "long")
EYES = ("one", "two", "three")
MOUTHS = ("smiling", "open", "toothy")
TAILS = ("none", "curly", "thick")
# Never drawn in training: what novel subjects and styles are made of.
HELD_OUT = {
    "body": ("boxy", "pear", "triangular"),
    "ears": ("horned", "antennae", "finned"),
    "pattern": ("belly", "cap", "halves"),
    "style": ("sketch", "neon"),
}
# Drawn for the identity encoder alone (train/world/twins.py), so that it meets more shapes than the base can draw.
ENCODER_ONLY = {
    "body": ("hexagonal", "domed", "diamond"),
    "ears": ("bearish", "crested", "unicorn"),
    "pattern": ("sash", "socks", "patch", "diagonal"),
}
RARE_TOKENS = ("sks", "zwx", "ohwx", "qvj", "ukw", "xjy", "bnf", "vtk")
ATTRIBUTES = {
    "kind": KINDS, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS), "style": STYLES, "pattern": PATTERNS,
}  # fmt: skip
POOLS = ("plain", "patterned", "styled", "pairs")
RARE_SHARE = 0.08


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """One picture's content. `second` is the right-hand object's (kind, colour); both objects are then plain."""

    kind: str = "ball"
    colour: str = "red"
    pattern: str = "plain"
    background: str = "studio"
    style: str = "photo"
    body: str = "round"
    ears: str = "pointy"
    eyes: str = "two"
    mouth: str = "smiling"
    tail: str = "none"
    colour2: str = ""
    second: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            value = getattr(self, name)
            if value not in (*allowed, *HELD_OUT.get(name, ()), *ENCODER_ONLY.get(name, ())):
                raise ValueError(f"{name}={value!r} is not drawn in this world; choose from {', '.join(allowed)}")


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def sample_attributes(rng: np.random.Generator, pool: str = "styled", kind: str | None = None) -> Attributes:
    """Draw a content. Pools: plain (photo, plain), patterned (photo), styled (everything), pairs (two objects)."""
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r} is unknown; choose from {', '.join(POOLS)}")
    colours = tuple(COLOURS)
    if kind is None:  # the class noun with hidden variety gets twice the share of any other
        kind = (*KINDS, "creature")[int(rng.integers(len(KINDS) + 1))]
    second = None
    if pool == "pairs":
        second = (_pick(rng, KINDS), _pick(rng, colours))
    return Attributes(
        kind=kind,
        colour=_pick(rng, colours),
        pattern=_pick(rng, PATTERNS) if pool in ("patterned", "styled") else "plain",
        background=_pick(rng, tuple(BACKGROUNDS)),
        style=_pick(rng, STYLES) if pool in ("styled", "pairs") else "photo",
        body=_pick(rng, BODIES),
        ears=_pick(rng, EARS),
        eyes=_pick(rng, ("two", "two", *EYES)),
        mouth=_pick(rng, MOUTHS),
        tail=_pick(rng, TAILS),
        second=second,
    )


def noun(words: list[str]) -> str:
    """Words with their article, those that are empty left out."""
    words = [word for word in words if word]
    return ("an " if words[0][0] in "aeiou" and words[0] not in ("one", "ukw") else "a ") + " ".join(words)


def prompt(attributes: Attributes, token: str = "", explicit: bool = False) -> str:
    """The full caption: `a photo of a red striped ball on a beach`; `token` stands before the adjectives.

    `plain` is the default and is said only if `explicit`.
    """
    pattern = "" if attributes.pattern == "plain" and not explicit else attributes.pattern
    text = noun([token, attributes.colour, pattern, attributes.kind])
    if attributes.second:
        text += " and " + noun([attributes.second[1], attributes.second[0]])
    return f"a {attributes.style} of {text} {BACKGROUNDS[attributes.background]}"


def _part_phrase(attributes: Attributes, rng: np.random.Generator) -> str:
    options = [f"with {attributes.eyes} eye{'' if attributes.eyes == 'one' else 's'}"]
    if attributes.ears != "none":
        options.append(f"with {attributes.ears} ears")
    if attributes.tail != "none":
        options.append(f"with a {attributes.tail} tail")
    return options[int(rng.integers(len(options)))]


def caption(attributes: Attributes, rng: np.random.Generator, rare: float = RARE_SHARE) -> str:
    """A training caption: attributes dropped at random, some parts of creatures named, 8 % with a rare token."""
    creature = attributes.kind == "creature"
    drop = rng.random(5)
    token = _pick(rng, RARE_TOKENS) if rng.random() < rare else ""
    colour = "" if drop[0] < (0.3 if creature else 0.1) else attributes.colour
    pattern = attributes.pattern
    if drop[1] < (0.75 if pattern == "plain" else 0.1):
        pattern = ""
    body = attributes.body if creature and rng.random() < 0.15 else ""
    text = noun([token, colour, pattern, body, attributes.kind])
    if attributes.second:
        text += " and " + noun(["" if drop[4] < 0.1 else attributes.second[1], attributes.second[0]])
    elif creature and rng.random() < 0.25:
        text += " " + _part_phrase(attributes, rng)
    if drop[2] >= 0.1:
        text = f"a {attributes.style} of {text}"
    if drop[3] >= 0.1:
        text = f"{text} {BACKGROUNDS[attributes.background]}"
    return text


def parse(text: str) -> dict[str, str]:
    """The attributes a prompt names (first object only); what is not named is absent."""
    found: dict[str, str] = {}
    for background, phrase in BACKGROUNDS.items():
        if phrase in text:
            found["background"] = background
            text = text.replace(phrase, " ")
    for word in text.split():
        for name, values in ATTRIBUTES.items():
            if name != "background" and word in values:
                found.setdefault(name, word)
    return found


_SECOND = ("kind2", "colour2")
_PARTS = {"body": BODIES, "ears": EARS[1:], "eyes": EYES, "tail": TAILS[1:]}


def claims(text: str) -> dict[str, str]:
    """Everything a caption says: `parse`, the second object's `kind2` and `colour2`, and the parts of a creature."""
    place = next((phrase for phrase in BACKGROUNDS.values() if phrase in text), "")
    first, _, second = text.partition(" and ")
    found = parse(f"{first} {place}")
    seconds = zip(_SECOND, (KINDS, tuple(COLOURS)), strict=True)
    said = [(name, values, first) for name, values in _PARTS.items()]
    said += [(name, values, second) for name, values in seconds]
    return found | {name: word for name, values, part in said for word in part.split() if word in values}


def truths(contents: list[Attributes], texts: list[str]) -> np.ndarray:
    """(n, m) bool: does caption j hold of picture i, that is, is nothing that it says false there?"""
    names = (*ATTRIBUTES, *_PARTS, *_SECOND)
    said = [claims(text) for text in texts]
    facts = []
    for content in contents:
        fact = {name: getattr(content, name) for name in ATTRIBUTES}
        if content.kind == "creature":
            fact |= {name: getattr(content, name) for name in _PARTS}
        facts.append(fact | dict(zip(_SECOND, content.second or (), strict=False)))
    true = np.ones((len(contents), len(texts)), bool)
    for name in names:
        claim = np.array([claim.get(name, "") for claim in said])
        true &= (claim == "")[None] | (np.array([fact.get(name, "") for fact in facts])[:, None] == claim[None])
    return true


_OTHER_WORDS = (
    "a an and of with the in on at under eye eyes ear ears tail mouth horns big small picture image style left right "
    "top next to black grey brown gold silver robot dog cat toy person object background forest space mountain river "
    "rainy sunny jungle box robot boat flower painting sketch neon print"
)


def words() -> tuple[str, ...]:
    """Every word of the world, each of which is one token."""
    known: list[str] = [*KINDS, *COLOURS, *PATTERNS, *STYLES, *BODIES, *EARS, *EYES, *MOUTHS, *TAILS, *RARE_TOKENS]
    known += [word for held_out in HELD_OUT.values() for word in held_out]
    known += [word for phrase in BACKGROUNDS.values() for word in phrase.split()]
    known += _OTHER_WORDS.split()
    return tuple(dict.fromkeys(word for word in known if word != "none"))
