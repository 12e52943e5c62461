"""What a run learns: one subject from a folder, or several domains at once; what differs between the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from diffusion_adapters import (
    FAMILIES,
    AdapterSet,
    add_adapter,
    compose_adapters,
    delete_adapters,
    load_adapter,
    set_adapters,
)
from diffusion_adapters.compose import train_mixing
from diffusion_adapters.hooks import find_adapter_set
from diffusion_adapters.options import Options
from train.bases import Base, BaseInfo
from train.data import CachedImages, DataOptions, Folder, check_data, generate_missing, read_folder
from train.data.phases import Phases
from train.domain_checks import check_encoders, check_parts, domain_named
from train.domain_options import SOURCE
from train.domains import add_sources, read_domains, source_prompts
from train.engine import Trainer
from train.flags import HYBRID
from train.objective import Objective
from train.optimizers import find_kind
from train.processes import sharded
from train.settings import join_groups

NEUTRAL = "a photo"
"""What pictures of domains show, unless their captions or `--instance_prompt` say more."""
SHOWN = 4
"""Prompts of the pictures that a run on domains makes, of those that it has."""


class Subject:
    """A folder of pictures of one subject, or of one style."""

    def check(self, config: Any) -> None:
        """Raise ValueError or FileNotFoundError, before seconds of imports."""
        config.check_domains()
        check_data(config)

    def family(self, config: Any) -> str:
        """The family whose options and learning rate count."""
        return config.adapter

    def told(self, config: Any) -> Any:
        """The options with what follows from the task."""
        return config

    def read(self, config: Any, info: BaseInfo) -> Folder:
        """The pictures."""
        return read_folder(config, config.resolution, config.seed, info.multiple)

    def shown(self, config: Any, folder: Folder) -> Any:
        """The options with the prompts of the pictures that the run makes, if they follow from its own."""
        return config

    def generate(
        self, accelerator: Accelerator, config: Any, info: BaseInfo, folder: Folder, stop: Callable[[], bool]
    ) -> Folder:
        """Make what the base has to draw before the training; the pictures of the run."""
        generate_missing(accelerator, config, info, stop)
        return folder

    def attach(self, model: Any, name: str, config: Any, adapter: Options) -> AdapterSet:
        """A new adapter on a denoiser, or on that of a pipeline."""
        return add_adapter(model, name, config.adapter, target_modules=config.target_modules, **adapter.as_dict())

    def trainer(
        self, accelerator: Accelerator, config: Any, base: Base, adapters: AdapterSet, dataset: CachedImages, name: str
    ) -> Trainer:
        """The loop, with what a step minimizes."""
        return Trainer(accelerator, config, base, adapters, dataset, objective=Objective.of(config))

    def foreseen(self, config: Any) -> Any:
        """The step that takes the most memory, to try it out without numbers."""
        return Objective.of(config)


class Domains(Subject):
    """Several folders, each of one domain, and an adapter with a part and a dial for each."""

    def check(self, config: Any) -> None:
        config.check_domains()
        for name, path in config.folders.items():
            with domain_named(name, path):
                check_data(dataclasses.replace(config, instance_data_dir=path))
        check_parts(config.pairs("part"))
        check_encoders(config.encoder)

    def family(self, config: Any) -> str:
        return config.family

    def told(self, config: Any) -> Any:
        """Prompts are neutral: no word stands for a domain."""
        own = DataOptions.__dataclass_fields__["instance_prompt"].default
        prompt = NEUTRAL if config.instance_prompt == own else config.instance_prompt
        return dataclasses.replace(config, instance_prompt=prompt)

    def read(self, config: Any, info: BaseInfo) -> Folder:
        check_parts(config.pairs("part"), info)
        return read_domains(config, config.resolution, config.seed, info.multiple)

    def shown(self, config: Any, folder: Folder) -> Any:
        if config.validation_prompt is not None:
            return config
        prompts = source_prompts(config, folder)
        return dataclasses.replace(config, validation_prompt=prompts[:: max(1, len(prompts) // SHOWN)][:SHOWN])

    def generate(
        self, accelerator: Accelerator, config: Any, info: BaseInfo, folder: Folder, stop: Callable[[], bool]
    ) -> Folder:
        return add_sources(accelerator, config, info, folder, stop)

    def attach(self, model: Any, name: str, config: Any, adapter: Options) -> AdapterSet:
        parts = config.pairs("part")
        if not parts or isinstance(model, nn.Module):
            own = adapter.as_dict()
            kinds = own.get("parts") or {d: {"family": config.family, **own} for d in config.folders}
            if set(kinds) != set(config.folders):
                raise ValueError(f"--parts {', '.join(kinds)} and --domain {', '.join(config.folders)}: name the same")
            return add_adapter(model, name, HYBRID, target_modules=config.target_modules, parts=kinds)
        names = {domain: f"{domain} of {name}" for domain in parts}
        for domain, file in parts.items():
            load_adapter(model, file, names[domain])
        compose_adapters(model, name, names)
        delete_adapters(model, list(names.values()))
        set_adapters(model, name)
        found = find_adapter_set(getattr(model, "unet", None) or model.transformer)
        assert found is not None
        return found

    def foreseen(self, config: Any) -> Any:
        from train.directional import Foreseen

        return Foreseen(config)

    def trainer(
        self, accelerator: Accelerator, config: Any, base: Base, adapters: AdapterSet, dataset: CachedImages, name: str
    ) -> Trainer:
        from train.directional import Directional
        from train.features import make_features

        if sharded(accelerator):
            raise ValueError("a base that is shared among processes cannot be looked into; train with whole copies")
        hybrids = adapters.of(name).values()
        if config.part:  # those of a checkpoint, too
            train_mixing(hybrids)
        features = make_features(config.encoder, base, accelerator.device)

        def turn(domain: str | None) -> None:
            dials = {other: float(domain in (None, other)) for other in config.folders}
            set_adapters(base.pipeline, name, domain_weights=dials)
            if config.hybrid_values == "mixing":
                train_mixing(hybrids, domain is None, parts=domain is not None)

        objective = Directional(config, base, dataset, adapters, features, turn)
        mixing = config.hybrid_values == "mixing"
        first = config.own_steps
        last = dataset.among([SOURCE]) if mixing else dataset
        samples = last
        if first:
            own, count = dataset.among(config.folders), first * dataset.order.group
            if mixing and (left := set(config.folders) - own.drawn_from(count, config.seed)):
                raise ValueError(
                    f"the steps that train parts ({first}: --hybrid_start {config.hybrid_start:g} of --max_train_steps "
                    f"{config.max_train_steps}) draw no picture of {', '.join(sorted(left))}: give more of either"
                )
            samples = Phases(own, last, count)
        groups = rates(hybrids, config, first if mixing else None)
        return Trainer(accelerator, config, base, adapters, samples, objective=objective, groups=groups)


def rates(adapters: Collection[Any], config: Any, turn: int | None) -> list[dict[str, Any]]:
    """Groups of hybrids for an optimizer: parts at the rates of their families, of which `--family` has
    `--learning_rate`; coefficients at one that is of no family's scale. Parts are done at step `turn` where there is
    one, where coefficients begin.
    """
    rate = config.learning_rate / FAMILIES[config.family].learning_rate
    parts = [] if config.part else [part for adapter in adapters for part in adapter.parts.values()]
    own = find_kind(config).learning_rate or config.coefficient_lr
    mixed = {"params": [value for adapter in adapters for value in adapter.parameters(recurse=False)], "lr": own}
    groups = join_groups(g for part in parts for g in part.parameter_groups(rate * part.learning_rate))
    if turn is None:
        return [*groups, mixed]
    return [*({**group, "steps": (0, turn)} for group in groups), {**mixed, "steps": (turn, config.max_train_steps)}]


def task_of(config: Any) -> Subject:
    """The task of a run by its options."""
    return Domains() if config.several else Subject()


def attach(task: Subject, config: Any, adapter: Options, model: Any, name: str = "blank") -> AdapterSet:
    """A new adapter, on a denoiser or on that of a pipeline, whose start depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return task.attach(model, name, config, adapter)
