"""What a run on several domains is told: their pictures, their parts, and the sources that they are changed from."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffusion_adapters import FAMILIES
from diffusion_adapters.options import Options, option
from train.data import DataOptions, Folder, generate_missing, read_folder
from train.flags import HYBRID

ROOT = Path(__file__).parent
SAMPLE_DOMAINS = ROOT / "sample_domains"
SOURCE = "source"
"""What the base's own pictures are called among domains."""
FEWEST = 2
"""Pictures of a domain, and domains: fewer span nothing."""
PARTS = tuple(name for name in FAMILIES if name != HYBRID)
VALUES = ("mixing", "all")
LOSSES = ("coordinates", "translation", "subspace", "direction", "both")


@dataclass(frozen=True, kw_only=True)
class DomainOptions(Options):
    title: ClassVar[str] = "hybrid domains (--adapter hybrid)"
    domain: tuple[str, ...] | None = option(
        None,
        "NAME=FOLDER for each domain: a few pictures that share what it is about, with captions (NAME.txt) that do not "
        "say it (default: the bundled ones)",
    )
    part: tuple[str, ...] | None = option(
        None, "NAME=FILE for each domain: compose these adapters, and train nothing but how they are mixed"
    )
    coefficient_lr: float = option(0.02, "learning rate of the coefficients by which domains are mixed", gt=0)
    family: str = option("lora", f"family of a domain's part: {', '.join(PARTS)}")
    encoder: tuple[str, ...] = option(
        ("denoiser",), "what tells domains apart: denoiser, or folders or Hub ids of vision models; several add up"
    )
    least_separability: float = option(
        0.15, "refused if no encoder tells each domain from its source by at least this; 0 takes any", ge=0
    )
    hybrid_loss: str = option(
        "coordinates",
        "coordinates: f_t - f_s in the ways to the domains, each to be 1; translation: |f_t - f_s - D|² with their sum "
        "D; direction: its cosine alone, as UniHDA; subspace: distance and direction to the domains' subspaces, as "
        "HDA; both: translation and subspace",
        choices=LOSSES,
    )
    hybrid_values: str = option(
        "mixing",
        "what is trained on all domains at once: mixing, the coefficients alone, of parts that are done by then; all, "
        "the parts too, in turn with each domain's pictures",
        choices=VALUES,
    )
    hybrid_start: float = option(
        0.67, "part of the steps before the first on all domains at once; until then each has its own", ge=0, lt=1
    )
    hybrid_share: float = option(
        0.5, "with --hybrid_values all: part of the steps after it that are on all domains", gt=0, lt=1
    )
    hybrid_weight: float = option(1.0, "weight of the loss of those steps", gt=0)
    direction_weight: float = option(0.5, "weight of the direction beside the distance to a subspace", ge=0)
    structure_weight: float = option(2.0, "weight of keeping the layout of the source", ge=0)
    subspace_energy: float = option(0.95, "share of the references' spread that a subspace keeps", gt=0, le=1)
    lowest_level: float = option(0.2, "least noise at which all domains are trained at once", gt=0, lt=1)
    highest_level: float = option(0.8, "most noise at which they are", gt=0, lt=1)
    level_buckets: int = option(4, "parts of that range, each with subspaces of pictures as blurred as it", ge=1)
    source_prompt: tuple[str, ...] | None = option(
        None, "neutral prompts of the pictures that are changed (default: the captions of the domains' pictures)"
    )
    source_data_dir: Path | None = option(  # noqa: RUF009
        None, "folder of those pictures; the missing are made by the base (default: source, in the output folder)"
    )
    num_source_images: int = option(32, "how many of them", ge=2)

    @property
    def several(self) -> bool:
        """Whether the run is on several domains."""
        return getattr(self, "adapter", HYBRID) == HYBRID

    def pairs(self, flag: str) -> dict[str, Path]:
        """Name -> path of a flag of the form NAME=PATH. Raises ValueError for another form or a name twice."""
        found: dict[str, Path] = {}
        for text in getattr(self, flag) or ():
            name, equals, path = text.partition("=")
            if not (equals and name and path):
                raise ValueError(f"--{flag} {text}: must be NAME=PATH, such as night=pictures/night")
            if name in found:
                raise ValueError(f"--{flag} {name} is given twice, as {found[name]} and as {path}; name each once")
            if name == SOURCE or not name.isidentifier():
                raise ValueError(f"--{flag} {name}: not a name for a domain; use letters, digits and _, not {SOURCE!r}")
            found[name] = Path(path)
        return found

    @property
    def folders(self) -> dict[str, Path]:
        """Folder of each domain by name."""
        given = self.pairs("domain")
        return given or {path.name: path for path in sorted(SAMPLE_DOMAINS.iterdir()) if path.is_dir()}

    def check_domains(self) -> None:
        """Raise ValueError or FileNotFoundError for what is missing, or has no effect."""
        if not self.several:
            for field in dataclasses.fields(DomainOptions):
                value = getattr(self, field.name)
                if value != field.default:
                    raise ValueError(f"--{field.name} has no effect without --adapter {HYBRID}; got {value}")
            return
        if self.family == HYBRID:
            raise ValueError(f"--family {HYBRID}: a part is no hybrid itself; give one of {', '.join(PARTS)}")
        folders, parts = self.folders, self.pairs("part")
        if len(folders) < FEWEST:
            raise ValueError(
                f"--domain {' '.join(self.domain or ())}: a hybrid has at least {FEWEST} domains; add another, or "
                "train a single one by train/dreambooth.py --adapter FAMILY"
            )
        if parts and set(parts) != set(folders):
            name = sorted(set(parts) ^ set(folders))[0]
            lacks = "--domain, with pictures to compare with" if name in parts else "--part"
            raise ValueError(
                f"domain {name} has no {lacks}; give both for {', '.join(sorted(set(parts) | set(folders)))}"
            )
        for name, file in parts.items():
            if not file.exists():
                raise FileNotFoundError(f"--part {name}={file}: no such file")
        if parts and self.hybrid_values != "mixing":
            raise ValueError(f"--hybrid_values {self.hybrid_values} does not go with --part, which are as they are")
        if self.hybrid_values == "mixing" and not parts and not self.hybrid_start:
            raise ValueError("--hybrid_start 0 leaves no steps to train parts; raise it, or take --hybrid_values all")
        if self.lowest_level >= self.highest_level:
            raise ValueError(f"--lowest_level {self.lowest_level} must be below --highest_level {self.highest_level}")
        config: Any = self
        for name in ("with_prior_preservation", "masked_loss", "train_text_encoder", "train_text_encoder_ti", "pilot"):
            if getattr(config, name, False):
                raise ValueError(f"--{name} does not go with --adapter {HYBRID}; leave it out")
        for name in ("instance_data_dir", "dataset_name"):
            if getattr(config, name, None) is not None:
                raise ValueError(
                    f"--{name} does not go with --adapter {HYBRID}: give each domain by --domain NAME=FOLDER"
                )


@contextlib.contextmanager
def named(domain: str, path: Path) -> Iterator[None]:
    """Errors inside name the flag of a domain."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace(f"--instance_data_dir {path}", f"--domain {domain}={path}")) from None


def read_domains(config: Any, resolution: int, seed: int, multiple: int) -> Folder:
    """The pictures of all domains. Raises ValueError or FileNotFoundError for a domain that has too few."""
    whole = Folder(Path(), resolution)
    for name, path in config.folders.items():
        with named(name, path):
            own = read_folder(dataclasses.replace(_data(config), instance_data_dir=path), resolution, seed, multiple)
        if len(own.examples) < FEWEST:
            raise ValueError(
                f"--domain {name}={path}: {len(own.examples)} picture, from which nothing can be told of a domain; "
                "give at least 2, better 5 to 10"
            )
        whole.examples += [dataclasses.replace(example, domain=name) for example in own.examples]
        whole.refused |= {f"{name}/{file}": reason for file, reason in own.refused.items()}
    return whole


def source_prompts(config: Any, folder: Folder) -> tuple[str, ...]:
    """The neutral prompts of a run: what its pictures show, without what their domains are about."""
    return config.source_prompt or tuple(dict.fromkeys(example.prompt for example in folder.examples))


def add_sources(accelerator: Any, config: Any, info: Any, folder: Folder, stop: Any) -> Folder:
    """`folder` with the base's own pictures of the neutral prompts, made where they are missing, each step's share."""
    path = config.source_data_dir or config.output_dir / SOURCE
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


def _data(config: Any) -> DataOptions:
    return DataOptions(**{field.name: getattr(config, field.name) for field in dataclasses.fields(DataOptions)})
