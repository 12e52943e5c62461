"""The pictures of a run on several domains, and the sources that they are changed from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.data import DataOptions, Folder, generate_missing, read_folder
from train.data.sources import check_place
from train.domain_checks import domain_named
from train.domain_options import FEWEST, SOURCE


def read_domains(config: Any, resolution: int, seed: int, multiple: int) -> Folder:
    """The pictures of all domains. Raises ValueError or FileNotFoundError for a domain that has too few of its own."""
    check_place(f"--source_data_dir {_sources(config)}", _sources(config))
    whole = Folder(Path(), resolution)
    seen: dict[str, set[str]] = {}  # flag -> what its pictures are known by, as they are first cut
    for name, path in config.folders.items():
        with domain_named(name, path):
            own = read_folder(dataclasses.replace(_data(config), instance_data_dir=path), resolution, seed, multiple)
        flag, found = f"--domain {name}={path}", {example.keys[0] for example in own.examples}
        if len(found) < FEWEST:
            copies = f" in {len(own.examples)} files" if len(own.examples) > len(found) else ""
            raise ValueError(
                f"{flag}: {len(found)} picture{copies}, from which nothing can be told of a domain; "
                "give at least 2 that differ, better 5 to 10"
            )
        seen[flag] = found
        whole.examples += [dataclasses.replace(example, domain=name) for example in own.examples]
        whole.refused |= {f"{name}/{file}": reason for file, reason in own.refused.items()}
    for one, other in itertools.permutations(seen, 2):
        if seen[one] <= seen[other]:
            raise ValueError(f"{one}: all its pictures are those of {other}; give each domain pictures of its own")
    return whole


def source_prompts(config: Any, folder: Folder) -> tuple[str, ...]:
    """The neutral prompts of a run: what its pictures show, without what their domains are about."""
    return config.source_prompt or tuple(dict.fromkeys(example.prompt for example in folder.examples))


def add_sources(accelerator: Any, config: Any, info: Any, folder: Folder, stop: Any) -> Folder:
    """`folder` with the base's own pictures of the neutral prompts, made where they are missing, each step's share."""
    path = _sources(config)
    prompts = source_prompts(config, folder)
    asked = {"class_data_dir": path, "num_class_images": config.num_source_images, "class_prompt": prompts[0]}
    generate_missing(
        accelerator, dataclasses.replace(config, with_prior_preservation=True, **asked), info, stop, prompts
    )
    data = dataclasses.replace(_data(config), instance_data_dir=path, instance_prompt=prompts[0], center_crop=True)
    sources = read_folder(data, config.resolution, config.seed, info.multiple).examples[: config.num_source_images]
    sources = [dataclasses.replace(example, domain=SOURCE) for example in sources]
    return dataclasses.replace(folder, examples=balanced(folder.examples, sources, config.hybrid_share))


def in_turn(folder: Folder) -> list[Any]:
    """The examples that a run was given: of several domains one of each, then the next, without the base's own."""
    by_domain: dict[str, list[Any]] = {}
    for example in folder.examples:
        by_domain.setdefault(example.domain, []).append(example)
    by_domain.pop(SOURCE, None)
    turns = itertools.zip_longest(*by_domain.values())
    return [example for turn in turns for example in turn if example is not None]


def balanced(examples: Sequence[Any], sources: Sequence[Any], share: float) -> list[Any]:
    """All of them, repeated so that each domain gets as many steps as any other, and `sources` about `share` of all."""
    names = [example.domain for example in examples]
    counts = {name: names.count(name) for name in names}
    each = max(len(sources) * (1 - share) / share / len(counts), *counts.values())
    times = {name: round(each / count) for name, count in counts.items()}
    times[SOURCE] = round(each * len(counts) * share / (1 - share) / len(sources))
    return [dataclasses.replace(example, repeats=max(times[example.domain], 1)) for example in (*examples, *sources)]


def _sources(config: Any) -> Path:
    return config.source_data_dir or config.output_dir / SOURCE


def _data(config: Any) -> DataOptions:
    return DataOptions(**{field.name: getattr(config, field.name) for field in dataclasses.fields(DataOptions)})
