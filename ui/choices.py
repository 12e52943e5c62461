"""What of the trainer's options may be set in the app, with which values it begins, and what is run with them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_adapters import FAMILIES, AdapterConfig
from diffusion_adapters.options import Options
from train.domain_options import DomainOptions
from train.dreambooth import DreamBoothOptions
from train.flags import BASE_FLAG, CONFIGS, HYBRID, for_family, known_good, parse, read_config, toml_value
from train.hub import HubOptions
from train.optimizers import OPTIMIZERS
from train.trackers import TrackerOptions
from ui.bases import Base
from ui.studio import Studio

MODELS = ("pretrained_vae_model_name_or_path", "image_encoder", "text_encoder")
"""Options that name other models; they are taken from users who may name a base."""
ELSEWHERE = {"resume_from_checkpoint", "dataset_name", "dataset_config_name", "image_column", "caption_column"} | {
    "mask_column", *(f.name for kind in (HubOptions, TrackerOptions, DomainOptions) for f in dataclasses.fields(kind))
}  # fmt: skip
"""Options that are set by a button, or belong to the command line: data sets, uploads, trackers, several domains."""
EMBEDDED = next(f.default for f in dataclasses.fields(DreamBoothOptions) if f.name == BASE_FLAG)
FAMILY = "adapter"
TAUGHT = tuple(name for name in FAMILIES if name != HYBRID)
"""Families that one folder of pictures teaches."""
LOOKS = 4
OFTEN = ("validation_steps", "checkpointing_steps")
"""Options for steps between samples, and between checkpoints: a run in the app begins with this many of both."""
CLASS_FOLDER = "class"


def groups() -> dict[str, tuple[type[Options], list[str]]]:
    """Title -> the declaration and the names of its options that may be set, in the order of the command line."""
    found: dict[str, tuple[type[Options], list[str]]] = {}
    for kind in DreamBoothOptions.__bases__:
        names = [name for name, (of, _) in kind.kinds().items() if of is not Path and name not in ELSEWHERE]
        if names:
            found[kind.title] = (kind, names)
    return found


def presets() -> list[str]:
    """The known-good runs, by name."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


class Choices:
    """Between what users say and the file that the trainer reads."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def start(self, base: str, family: str, preset: str = "") -> dict[str, Any]:
        """The values to begin with: those declared, then of the known-good run of the base, then of a `preset`."""
        family = FAMILIES.canonical(family)
        known = dict(known_good(self.source(base)))
        if preset:
            if preset not in presets():
                raise ValueError(f"no preset {preset!r}; there are: {', '.join(presets())}")
            known |= read_config(CONFIGS / f"{preset}.toml")
        declared = {f.name: f.default for kind in self._kinds(family) for f in dataclasses.fields(kind)}
        values = {**declared, **for_family(known, family, DreamBoothOptions)}
        values |= dict.fromkeys(OFTEN, max(1, values["max_train_steps"] // LOOKS))
        return {name: values[name] for name in self.names(family)} | {BASE_FLAG: base, FAMILY: family}

    def names(self, family: str) -> list[str]:
        """Options that may be set for a family."""
        own = list(FAMILIES[family].Config.kinds())
        return [name for _, names in groups().values() for name in names] + own

    def source(self, base: str) -> str:
        """What the trainer is told of a base by its name in the app, or, where users may, a folder or a Hub id."""
        if base in self.studio.bases or not base:
            return self.studio.base(base).source or EMBEDDED
        if not self.studio.open_to_bases:
            raise ValueError(f"this app has the bases {', '.join(self.studio.bases)} and takes no others")
        return Base.of(base.strip()).source or EMBEDDED

    def toml(self, values: Mapping[str, Any], data: Path, folder: Path) -> str:
        """The configuration file of a run in `folder` on the pictures in `data`. Raises ValueError, TypeError.

        `values`: option -> value, None for what is not set. All of it is checked as the trainer checks it.
        """
        family = FAMILIES.canonical(family_in(values))
        if family not in TAUGHT:
            raise ValueError(
                f"a {family} learns from a folder of each domain: use train/hybrid_domain.py; its dials are here"
            )
        known = self.names(family)
        given = {name: value for name, value in values.items() if value not in (None, "", [], ())}
        for name in given:
            if name not in known:
                raise ValueError(f"option {name!r} cannot be set here for {family}; what can: {', '.join(known)}")
        source = self.source(str(given.get(BASE_FLAG) or ""))
        kinds = {name: kind for part in self._kinds(family) for name, (kind, _) in part.kinds().items()}
        whole = [name for name, value in given.items() if isinstance(value, float) and value.is_integer()]
        given |= {name: int(given[name]) for name in whole if kinds[name] is int}  # JSON knows no difference
        self._refuse_models(given, known_good(source))
        given |= {FAMILY: family, BASE_FLAG: source}
        given |= {"instance_data_dir": str(data.resolve()), "output_dir": str(folder.resolve())}
        if given.get("with_prior_preservation") and given.get("prior_source", "images") == "images":
            given["class_data_dir"] = str((folder / CLASS_FOLDER).resolve())
        text = "".join(f"{name} = {toml_value(_plain(value))}\n" for name, value in given.items())
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "run.toml"
            path.write_text(text, "utf-8")
            parsed(path)
        return text

    def read(self, path: Path) -> dict[str, Any]:
        """The values of a run's file, as users set them."""
        values = read_config(path)
        names = {base.source or EMBEDDED: name for name, base in self.studio.bases.items()}
        source = values.get(BASE_FLAG, EMBEDDED)
        allowed = self.names(values[FAMILY])
        return {name: value for name, value in values.items() if name in allowed} | {
            BASE_FLAG: names.get(source, Path(source).name if Path(source).is_dir() else source)
        }

    def _refuse_models(self, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        for name in MODELS:
            if name in given and given[name] != known.get(name) and not self.studio.open_to_bases:
                raise ValueError(f"{name}: this app takes no models but those that it was opened with")
        optimizer = given.get("optimizer", "adamw")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {optimizer!r}")

    @staticmethod
    def _kinds(family: str) -> list[type[Options]]:
        return [*DreamBoothOptions.__bases__, FAMILIES[family].Config]


def family_in(values: Mapping[str, Any], default: str = "lora") -> str:
    """The family that `values` name."""
    return str(values.get(FAMILY) or default)


def parsed(path: Path) -> tuple[DreamBoothOptions, AdapterConfig]:
    """The options of a run's file. Raises ValueError, TypeError."""
    return parse(DreamBoothOptions, None, ["--config", str(path)])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
