"""Several domains in one picture, from a few pictures of each: hybrid adapters beside the usual ways.

Domains of the drawn world, on the embedded base; every adapter sees the pictures of each domain for the same number of
steps. Beside hybrids as `train/hybrid_domain.py` trains or composes them: single-domain adapters summed and merged
(TIES, DARE), one fine-tuning after the other, and one adapter of all pictures together. Prompts name no domain. The
judge is the world's oracle, taught the mixtures, which no training sees. Finished cells are kept: an interrupted run
goes on. Intervals are over mixtures × trainings × prompts × seeds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from diffusion_adapters import AdapterWeight, use_adapters
from diffusion_adapters.options import Options, option
from train.benchmarks import hybrid_cost
from train.benchmarks.blending import draw, load_base, sheet
from train.benchmarks.cells import Cells, Result
from train.benchmarks.mixture_scores import METRICS, Scorer, as_json, interval, judge_of, table
from train.benchmarks.mixtures import (
    CHOSEN,
    COMPOSED,
    ENCODERS,
    FIRST_SEED,
    MIXTURES,
    OWN_SUM,
    SUM,
    TWICE,
    WAYS,
    Mixture,
    Rows,
    Shop,
)
from train.flags import HYBRID
from train.output import write
from train.ruler import Encoder
from train.ruler.metrics import Values
from train.ruler.tiles import cut, join
from train.script import command, read_options

BESIDE = {HYBRID: (OWN_SUM, SUM, "sequential"), COMPOSED: (SUM, "sequential"), TWICE: (SUM,)}
"""Ours -> the ways that it is compared with."""
DIALS = (0.0, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class HybridOptions(Options):
    title: ClassVar[str] = "hybrid domains"
    work_dir: Path = option(Path("runs/hybrid"), "folder of pictures, adapters and finished cells")  # noqa: RUF009
    family: str = option("lora", "family of all adapters")
    steps: int = option(120, "steps on the pictures of each domain", ge=1)
    seeds: int = option(3, "pictures of each prompt", ge=2)
    train_seeds: int = option(1, "trainings of everything", ge=1)
    mixtures: int = option(len(MIXTURES), "how many of the mixtures", ge=1, le=len(MIXTURES))
    threads: int = option(1, "CPU threads; more than one stalls on a busy machine", ge=1)
    output_dir: Path = option(Path(HYBRID), "folder for hybrid.md, .json and .png, and dials.png")  # noqa: RUF009


class Bench:
    """The cells of a measurement."""

    def __init__(self, options: HybridOptions) -> None:
        torch.set_num_threads(options.threads)
        self.options, work = options, options.work_dir
        self.shops = [Shop(work, options.family, options.steps, seed) for seed in range(options.train_seeds)]
        self.mixtures = [Mixture(domains) for domains in MIXTURES[: options.mixtures]]
        self.seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
        settings = {"family": options.family, "steps": options.steps, "seeds": options.seeds}
        self.cells = Cells(work / "cells", settings)
        self.pictures = work / "pictures"

    def drawn(self, mixture: Mixture, way: str, shop: Shop) -> Rows:
        """The pictures of a cell, from its sheet if it is there."""
        path = self.pictures / f"{'+'.join(mixture.domains)}_{way}_{shop.seed}.png"
        if path.is_file():
            with Image.open(path) as image:
                return cut(image.convert("RGB"), len(mixture.prompts), len(self.seeds))
        rows = WAYS[way](shop, mixture, self.seeds)
        self.pictures.mkdir(parents=True, exist_ok=True)
        joined = join(rows)
        write(path, lambda where: joined.save(where, "PNG"))
        return rows

    def draw_all(self) -> None:
        """Train and draw every cell."""
        for shop in self.shops:
            for mixture in self.mixtures:
                for way in WAYS:
                    self.drawn(mixture, way, shop)

    def cell(self, scorer: Scorer, mixture: Mixture, way: str, shop: Shop) -> Result:
        """The scores of a cell, against the base's pictures."""
        pictures, base = (self.drawn(mixture, name, shop) for name in (way, "base"))
        key = f"{'+'.join(mixture.domains)}_{way}_{shop.seed}"
        return self.cells.fill(key, lambda: as_json(scorer(mixture, pictures, base)))

    def score_all(self) -> list[dict[str, dict[str, Values]]]:
        """For each mixture, way -> metric -> (trainings, prompts, seeds); last way: drawn by the world itself."""
        judge, found = judge_of(self.options.work_dir), []
        shop = self.shops[0]
        names = dict.fromkeys(domain for mixture in self.mixtures for domain in mixture.domains)
        references = {name: [Image.open(f).convert("RGB") for f in shop.folder(name).glob("*.png")] for name in names}
        scorer = Scorer(judge, Encoder("pipelines/pocket/clip"), references)
        for mixture in self.mixtures:
            own: dict[str, dict[str, Values]] = {}
            for way in WAYS:
                cells = [self.cell(scorer, mixture, way, at) for at in self.shops]
                own[way] = {name: np.stack([np.asarray(cell[name]) for cell in cells]) for name in cells[0]}
            real = scorer(mixture, mixture.real(len(self.seeds)), self.drawn(mixture, "base", shop))
            named = [k for k in real if k in ("all", "weakest", "likeness", "inception") or k.startswith("domain ")]
            own["drawn by the world itself"] = {name: real[name][None].repeat(len(self.shops), 0) for name in named}
            found.append(own)
        self.accuracy = judge.accuracy()
        return found

    def cost(self) -> Result:
        """What steps take, measured once."""

        def measured() -> Result:
            with tempfile.TemporaryDirectory() as folder:
                return hybrid_cost.measure(self.options.family, Path(folder))

        return self.cells.fill("cost", measured)


def over_all(found: Sequence[dict[str, dict[str, Values]]]) -> dict[str, dict[str, Values]]:
    """Way -> metric -> (mixtures, trainings, prompts, seeds)."""
    shared = [name for name in METRICS if all(name in own["base"] for own in found)]
    return {
        way: {name: np.stack([own[way][name] for own in found]) for name in shared if name in found[0][way]}
        for way in found[0]
    }


def differences(found: Sequence[dict[str, dict[str, Values]]]) -> str:
    """Markdown: domains × content of hybrids less that of other ways, by which mixtures."""
    sets = {"all mixtures": found, "those of the choice": found[: len(CHOSEN)], "fresh ones": found[len(CHOSEN) :]}
    sets = {f"{name} ({len(own)})": own for name, own in sets.items() if own}
    lines = [f"| domains × content, paired | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for ours, way in ((ours, way) for ours, ways in BESIDE.items() for way in ways):
        wholes = [over_all(own) for own in sets.values()]
        cells = [str(interval("", whole[ours]["product"] - whole[way]["product"])) for whole in wholes]
        lines.append(f"| {ours} − {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(
    found: Sequence[dict[str, dict[str, Values]]], mixtures: Sequence[Mixture], cost: Mapping[str, Mapping[str, float]]
) -> str:
    """Markdown: everything over all mixtures, what hybrids differ by, what steps cost, the domains of each mixture."""
    parts = [table(over_all(found), list(METRICS)), differences(found), hybrid_cost.table(cost)]
    for own, mixture in zip(found, mixtures, strict=True):
        metrics = ["product", *(f"domain {name}" for name in mixture.domains), "content"]
        parts.append(f"**{mixture.label}**\n\n{table(own, metrics)}")
    return "\n\n".join(parts)


def dial_grid(bench: Bench, seed: int = FIRST_SEED) -> Image.Image:
    """A row for each dial of the first domain, columns for each of the second, two prompts side by side."""
    mixture, shop = bench.mixtures[0], bench.shops[0]
    first, second = mixture.domains
    pipe, rows = load_base(whole=shop.hybrid(mixture.domains, True, ENCODERS)), []
    for one in DIALS:
        images = []
        for two in DIALS:
            with use_adapters(pipe, "whole", AdapterWeight(domains={first: one, second: two})):
                images += [row[0] for row in draw(pipe, mixture.prompts[:2], [seed])]
        rows.append((f"{first} {one:g}, {second} {', '.join(f'{two:g}' for two in DIALS)}", images))
    return sheet(rows)


def write_results(bench: Bench, found: list[dict[str, dict[str, Values]]]) -> list[Path]:
    """hybrid.md, hybrid.json, hybrid.png (two prompts of each mixture) and dials.png."""
    options, out = bench.options, bench.options.output_dir
    facts: dict[str, Any] = {name: getattr(options, name) for name in ("family", "steps", "seeds", "train_seeds")}
    facts |= {"metrics": {name: said for name, (_, said) in METRICS.items()}, "judge": bench.accuracy}
    facts["mixtures"] = {
        mixture.label: {"prompts": mixture.prompts, "ways": {way: as_json(v) for way, v in own.items()}}
        for mixture, own in zip(bench.mixtures, found, strict=True)
    }
    facts["cost"] = cost = bench.cost()
    text, data = summary(found, bench.mixtures, cost), json.dumps(facts)
    shown = []
    for way in WAYS:
        rows = [bench.drawn(mixture, way, bench.shops[0]) for mixture in bench.mixtures]
        shown.append((way, [row[0] for own in rows for row in own[:2]]))
    shown.append(("drawn by the world itself", [r[0] for m in bench.mixtures for r in m.real(1)[:2]]))
    pictures, dials = sheet(shown, 64), dial_grid(bench)
    return [
        write(out / "hybrid.md", lambda path: path.write_text(text + "\n", "utf-8")),
        write(out / "hybrid.json", lambda path: path.write_text(data + "\n", "utf-8")),
        write(out / "hybrid.png", lambda path: pictures.save(path, "PNG", optimize=True)),
        write(out / "dials.png", lambda path: dials.save(path, "PNG", optimize=True)),
    ]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write."""
    bench = Bench(read_options(HybridOptions, __doc__, "benchmark.py --hybrid", argv))
    bench.draw_all()
    for path in write_results(bench, bench.score_all()):
        print(path)
