"""What a run on several domains can be told, and which of it contradicts itself or has no effect."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffusion_adapters import FAMILIES
from diffusion_adapters.options import Options, option
from diffusion_adapters.parts import check_name
from train.flags import HYBRID
from train.optimizers import find_kind

SAMPLE_DOMAINS = Path(__file__).parent / "sample_domains"
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
            if name == SOURCE:
                raise ValueError(f"--{flag} {text}: {SOURCE} is what the base's own pictures are; name it otherwise")
            try:
                check_name(name)
            except ValueError as error:
                raise ValueError(f"--{flag} {text}: {error}") from None
            found[name] = Path(path)
        return found

    @property
    def folders(self) -> dict[str, Path]:
        """Folder of each domain by name."""
        given = self.pairs("domain")
        return given or {path.name: path for path in sorted(SAMPLE_DOMAINS.iterdir()) if path.is_dir()}

    def idle(self, adapter: Options) -> dict[str, str]:
        # How parts are trained says nothing where none is; what trains coefficients at a rate of its own has no other.
        if not self.several:
            return {field.name: f"without --adapter {HYBRID}" for field in dataclasses.fields(DomainOptions)}
        config: Any = self
        kind, own, found = find_kind(config), [field.name for field in dataclasses.fields(adapter)], {}
        if self.hybrid_values != "all":
            found["hybrid_share"] = "without --hybrid_values all"
        if self.hybrid_loss not in ("subspace", "both"):
            found["direction_weight"] = "without --hybrid_loss subspace or both"
        if kind.learning_rate is not None:
            found["coefficient_lr"] = f"with --optimizer {config.optimizer}, which has a rate of its own"
        if "parts" in own and self.family != HYBRID and config.learning_rate is None:  # which is that of --family
            found["family"] = "with --parts, which say the family of each"
        if self.part:
            lost = ["family", "parts", *own, "target_modules", "hybrid_start"]
            lost += [] if kind.one_rate else ["learning_rate", "scale_lr"]
            found |= dict.fromkeys(lost, "with --part: the adapters are there, and only how they are mixed is trained")
        return found

    @property
    def own_steps(self) -> int:
        """The first steps of a run, in which each domain is by itself, once the number of all steps is known."""
        config: Any = self
        return 0 if self.part else round(self.hybrid_start * config.max_train_steps)

    def check_stages(self) -> None:
        """Raise ValueError for a run of which one stage has no steps, once the number of all steps is known."""
        if not self.several or self.part:
            return
        config: Any = self
        said = f"--hybrid_start {self.hybrid_start:g} of --max_train_steps {config.max_train_steps} leaves no step"
        if self.own_steps == config.max_train_steps:
            raise ValueError(f"{said} on all domains at once; lower it, or give more steps")
        if self.hybrid_values == "mixing" and not self.own_steps:
            raise ValueError(f"{said} to train parts; raise it, give more steps, or take --hybrid_values all")

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
        if parts and self.hybrid_values != "mixing":
            raise ValueError(f"--hybrid_values {self.hybrid_values} does not go with --part, which are as they are")
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
