"""What `--hybrid` trains and draws: each way to bring several domains into one picture, on the embedded base."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_adapters import bake, merge_adapters, use_adapters
from diffusion_adapters.attach import adapter_sets
from train.benchmarks.blending import draw, load_base
from train.domain_options import DomainOptions
from train.dreambooth import main as dreambooth
from train.flags import HYBRID
from train.world.captions import BACKGROUNDS, KINDS
from train.world.domains import DOMAINS, caption, content, picture, write

CHOSEN = (("neon", "mosaic"), ("drawing", "night"), ("neon", "creature"), ("drawing", "mosaic", "night"))
"""By these the loss of hybrids and its options were chosen."""
FRESH = (
    ("sketch", "mosaic"),
    ("sketch", "night"),
    ("mosaic", "creature"),
    ("neon", "night"),
    ("drawing", "creature"),
    ("neon", "mosaic", "night"),
)
"""By these nothing was."""
MIXTURES = (*CHOSEN, *FRESH)
PROMPTS, FIRST_SEED = 8, 1000
OWN = DomainOptions.hybrid_start
"""Of the steps of a hybrid, those on the pictures of one domain."""
SUM, OWN_SUM = "sum of single-domain adapters", f"sum of the {HYBRID}'s parts"
COMPOSED = f"{HYBRID}, composed of the single-domain adapters"
TWICE = f"{COMPOSED}, by two encoders"
ENCODERS = ("denoiser", "pipelines/pocket/encoder")
Rows = list[list[Image.Image]]


@dataclass(frozen=True)
class Mixture:
    """Domains, the contents that are asked for, and how each is asked for: without a word on the domains."""

    domains: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its name in tables."""
        return " + ".join(self.domains)

    @property
    def contents(self) -> list[Any]:
        """Fresh contents, each of another kind if a domain does not decide it."""
        rng = np.random.default_rng([77, *"".join(self.domains).encode()])
        kind = next((DOMAINS[d].changes["kind"] for d in self.domains if "kind" in DOMAINS[d].changes), None)
        kinds = [kind] * PROMPTS if kind else [KINDS[i] for i in rng.permutation(len(KINDS))[:PROMPTS]]
        drawn = [content(rng, own) for own in kinds]
        if kind is None:
            return drawn
        days = [name for name in BACKGROUNDS if name != "night"]  # in turn, where nothing else is another
        return [dataclasses.replace(a, background=days[i % len(days)]) for i, a in enumerate(drawn)]

    @property
    def prompts(self) -> list[str]:
        """A neutral prompt for each content."""
        return [caption(own, self.domains) for own in self.contents]

    @property
    def kept(self) -> tuple[str, ...]:
        """What no domain decides, so that it should stay as it is: heads of the judge."""
        decided = {name for domain in self.domains for name in DOMAINS[domain].changes}
        return tuple(name for name in ("kind", "colour", "background") if name not in decided or name == "kind")

    def real(self, seeds: int) -> Rows:
        """As the world draws them."""
        return [
            [picture(own, self.domains, np.random.default_rng([5, seed]), 48) for seed in range(seeds)]
            for own in self.contents
        ]


@dataclass(frozen=True)
class Shop:
    """Trains on the drawn domains what is not trained yet, and keeps it."""

    work_dir: Path
    family: str
    steps: int
    seed: int

    def folder(self, domain: str) -> Path:
        """Pictures of a domain."""
        path = self.work_dir / "domains" / domain
        return path if path.is_dir() else write(domain, path)

    def train(self, label: str, pictures: Path, steps: int, base: Path = Path("pipelines/pocket")) -> Path:
        """The adapter that `train/dreambooth.py` makes of pictures with captions, unless its file is there."""
        file = self.work_dir / "trained" / f"{self.family}-{label}-{self.seed}" / "adapter.safetensors"
        if not file.is_file():
            own = {"adapter": self.family, "instance_data_dir": pictures, "pretrained_model_name_or_path": base}
            self._run(file, own | {"max_train_steps": steps})
        return file

    def hybrid(self, domains: Sequence[str], composed: bool = False, encoders: Sequence[str] = ()) -> Path:
        """The hybrid that `train/hybrid_domain.py` trains, or composes of the single adapters, unless it is there.

        `encoders`: instead of the default one, by name or path.
        """
        label = "-".join([HYBRID, *["composed"] * composed, *(Path(name).name for name in encoders), "+".join(domains)])
        file = self.work_dir / "trained" / f"{self.family}-{label}-{self.seed}" / "adapter.safetensors"
        if not file.is_file():
            own: dict[str, Any] = {"adapter": HYBRID}
            own["domain"] = [f"{domain}={self.folder(domain)}" for domain in domains]
            own["source_data_dir"] = self.work_dir / "sources" / "+".join(domains)
            own["max_train_steps"] = self.steps if composed else round(self.steps * len(domains) / OWN)
            if composed:
                own["part"] = [f"{domain}={self.single(domain)}" for domain in domains]
            else:
                own["family"] = self.family
            if encoders:
                own["encoder"] = list(encoders)
            self._run(file, own)
        return file

    def _run(self, file: Path, options: Mapping[str, Any]) -> None:
        said = {"output_dir": file.parent, "seed": self.seed, "num_validation_images": 0, "checkpointing_steps": 0}
        line = []
        for name, value in {**options, **said}.items():
            line += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
        if dreambooth(line):
            raise RuntimeError(f"{file.parent.name} could not be trained")

    def single(self, domain: str) -> Path:
        """The adapter of one domain."""
        return self.train(domain, self.folder(domain), self.steps)

    def joint(self, domains: Sequence[str]) -> Path:
        """One adapter of the pictures of all domains together, for as many steps as they would have alone."""
        union = self.work_dir / "domains" / "+".join(domains)
        for domain in domains if not union.is_dir() else ():
            for file in sorted(self.folder(domain).iterdir()):
                union.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, union / f"{domain}-{file.name}")
        return self.train("joint-" + "+".join(domains), union, self.steps * len(domains))

    def sequence(self, domains: Sequence[str]) -> list[Path]:
        """An adapter of each domain, trained on the base into whose weights those before it were written."""
        files = [self.single(domains[0])]
        for count in range(1, len(domains)):
            base = self.work_dir / "baked" / f"{self.family}-{'+'.join(domains[:count])}-{self.seed}" / "pocket"
            if not base.is_dir():
                pipe = load_base(**{f"a{i}": file for i, file in enumerate(files)})
                bake(pipe, [f"a{i}" for i in range(len(files))], base)
            files.append(
                self.train("after-" + "+".join(domains[: count + 1]), self.folder(domains[count]), self.steps, base)
            )
        return files


def blend(files: Callable[[Shop, Sequence[str]], Sequence[Path]], method: str | None = None, **options: Any) -> Any:
    """A way to draw: with the files of the adapters all at weight 1, or as merged by `method`."""

    def drawn(shop: Shop, mixture: Mixture, seeds: Sequence[int]) -> Rows:
        found = {f"a{i}": file for i, file in enumerate(files(shop, mixture.domains))}
        pipe = load_base(**found)
        names = list(found)
        if method is not None:
            merge_adapters(pipe, names, "merged", method=method, **options)
            names = ["merged"]
        with use_adapters(pipe, names):
            return draw(pipe, mixture.prompts, seeds)

    return drawn


def unmixed(shop: Shop, mixture: Mixture, seeds: Sequence[int]) -> Rows:
    """Draw with the parts of the hybrid that was trained from nothing, all coefficients at 1."""
    pipe = load_base(whole=shop.hybrid(mixture.domains))
    for adapter in adapter_sets(pipe)["unet"].of("whole").values():
        adapter.coefficients.data.fill_(1.0)
    with use_adapters(pipe, "whole"):
        return draw(pipe, mixture.prompts, seeds)


def singles(shop: Shop, domains: Sequence[str]) -> list[Path]:
    """The adapter of each domain."""
    return [shop.single(domain) for domain in domains]


WAYS: dict[str, Callable[[Shop, Mixture, Sequence[int]], Rows]] = {
    "base": blend(lambda shop, domains: []),
    SUM: blend(singles),
    "TIES": blend(singles, "ties", density=0.5),
    "DARE": blend(singles, "dare_linear", density=0.5, rank=32),
    "DARE-TIES": blend(singles, "dare_ties", density=0.5),
    "sequential": blend(lambda shop, domains: shop.sequence(domains)),
    "joint": blend(lambda shop, domains: [shop.joint(domains)]),
    OWN_SUM: unmixed,
    HYBRID: blend(lambda shop, domains: [shop.hybrid(domains)]),
    COMPOSED: blend(lambda shop, domains: [shop.hybrid(domains, True)]),
    TWICE: blend(lambda shop, domains: [shop.hybrid(domains, True, ENCODERS)]),
}
