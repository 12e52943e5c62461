"""Protocols: what is drawn to judge an adapter, with which encoders, on which subjects. One TOML file each."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_adapters.registry import nearest

FOLDER = Path(__file__).parent / "protocols"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something to learn: `phrase` stands for it in prompts ("sks dog"), `noun` for its class ("dog")."""

    name: str
    phrase: str
    noun: str
    kind: str = "all"
    folder: str = ""
    world: int | None = None
    """Number of a held-out subject of pocket's world, which is drawn instead of read from `folder`."""
    train: tuple[int, ...] = ()
    test: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()
    """Of every picture of the folder in the order of names; `train` and `test` then say which are used for what."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The pictures that judge one subject: every prompt from the same seeds."""

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    """The prompts without the rare word: what prompt fidelity compares with."""
    class_prompts: tuple[str, ...] = ()
    unrelated_prompts: tuple[str, ...] = ()
    pairs: tuple[int | None, ...] | None = None
    """For each prompt the one picture of the subject that it describes, if there is one."""
    seeds: int = 4
    first_seed: int = 1000
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    resolution: int | None = None

    def sets(self) -> dict[str, tuple[str, ...]]:
        """Name -> prompts of each set of pictures that is not empty."""
        named = {"subject": self.prompts, "class": self.class_prompts, "unrelated": self.unrelated_prompts}
        return {name: prompts for name, prompts in named.items() if prompts}

    def numbers(self) -> list[int]:
        """The seeds; training counts from 0, so that none of its noise is among them."""
        return list(range(self.first_seed, self.first_seed + self.seeds))


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to judge, and the subjects to judge on. Templates hold `{}` for the subject or the noun of its class."""

    title: str
    source: str
    pretrained_model_name_or_path: str
    image_encoder: str
    text_encoder: str | None = None
    instance_prompt: str = "a photo of {}"
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Templates by kind of subject."""
    class_prompts: tuple[str, ...] = ()
    unrelated_prompts: tuple[str, ...] = ()
    seeds: int = 4
    first_seed: int = 1000
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    resolution: int | None = None
    subjects: tuple[Subject, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)
    """Options of train/dreambooth.py that the protocol prescribes."""

    def suite(self, phrase: str, noun: str, kind: str = "all") -> Suite:
        """The pictures for a subject that prompts call `phrase`, of the class `noun`."""
        if kind not in self.prompts:
            raise ValueError(f"{self.title}: no prompts for a subject of kind {kind!r}, {nearest(kind, self.prompts)}")
        templates = self.prompts[kind]
        return Suite(
            prompts=fill(templates, phrase),
            texts=fill(templates, noun),
            class_prompts=fill(self.class_prompts, noun),
            unrelated_prompts=self.unrelated_prompts,
            **self._sampling(),
        )

    def suite_of(self, subject: Subject) -> Suite:
        """The pictures for one of the protocol's own subjects: its test captions, if it has some."""
        if not subject.captions:
            return self.suite(subject.phrase, subject.noun, subject.kind)
        captions = tuple(subject.captions[i] for i in subject.test)
        return Suite(
            prompts=captions,
            texts=tuple(caption.replace(subject.phrase, subject.noun) for caption in captions),
            class_prompts=fill(self.class_prompts, subject.noun),
            unrelated_prompts=self.unrelated_prompts,
            pairs=tuple(range(len(captions))),
            **self._sampling(),
        )

    def _sampling(self) -> dict[str, Any]:
        names = ("seeds", "first_seed", "num_inference_steps", "guidance_scale", "resolution")
        return {name: getattr(self, name) for name in names}


def fill(templates: Sequence[str], words: str) -> tuple[str, ...]:
    """Put `words` where each template has its `{}`. Raises ValueError for a template without one."""
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"prompt {template!r} must hold {{}} once, where the subject or its class is put")
    return tuple(template.replace("{}", words) for template in templates)


def names() -> list[str]:
    """The protocols that the project keeps."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_protocol(name: str) -> Protocol:
    """A protocol by its name or file. Raises FileNotFoundError or ValueError with one line."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise FileNotFoundError(f"no protocol {name!r}; give a TOML file, or one of {', '.join(names())}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        subjects = tuple(
            _made(Subject, entry, f"subject {i + 1}") for i, entry in enumerate(values.pop("subjects", ()))
        )
        protocol = _made(Protocol, {**values, "subjects": subjects}, "the protocol")
        for subject in protocol.subjects:
            protocol.suite_of(subject)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"protocol {path}: {error}") from None
    return protocol


def _made(kind: Any, values: Mapping[str, Any], place: str) -> Any:
    known = {one.name for one in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"unknown name {name!r} in {place}, {nearest(name, known)}")
    required = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    absent = sorted(required - set(values))
    if absent:
        raise ValueError(f"{absent[0]!r} is missing in {place}")
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return {key: _frozen(inner) for key, inner in value.items()} if isinstance(value, dict) else value
