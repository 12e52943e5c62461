"""Time, memory and launches of a training step: our families beside PEFT and LyCORIS on the same UNet.

All rows stand in one process on one frozen UNet with random numbers; their steps take turns, and each is compared with
the step of PEFT's LoRA in the same turn. Peak memory is that of adapters, optimizer and activations, without the UNet.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion_adapters.options import Options, option
from train.benchmarks import models
from train.benchmarks.measure import Step, launches, own_values, peak_bytes, saved_bytes, seconds
from train.benchmarks.methods import REFERENCE, Method, methods
from train.benchmarks.report import Report, machine
from train.benchmarks.shapes import held
from train.script import command, read_options

RESULTS = Path(__file__).with_name("speed.json")
"""What was measured last, by preset and device: the table of README.md."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(Options):
    preset: str = option("pocket", "shapes of the UNet", choices=models.PRESETS)
    side: int | None = option(None, "side of the latents (default: the model's own; 16 of sd15 on a CPU)", ge=8)
    train_batch_size: int | None = option(None, "pictures per step (default: 4 of pocket, else 1)", ge=1)
    dtype: str = option("fp32", "of the frozen UNet; what is trained is fp32", choices=tuple(DTYPES))
    device: str = option("cpu", "cpu, cuda, cuda:1 ...; none: what is held for the backward, without numbers and times")
    rank: int = option(4, "rank of LoRA, and of what has one beside it", ge=1)
    repeats: int = option(9, "timed steps of each row", ge=1)
    only: tuple[str, ...] | None = option(None, f"rows to measure beside {REFERENCE} (default: all)")
    write: bool = option(False, f"keep the result in {RESULTS.name}, of which README.md shows a table")


def measure(options: SpeedOptions) -> dict[str, Any]:
    """Settings, machine, and for each row what was measured and its ratios to `REFERENCE`. Raises ValueError."""
    known = methods(options.rank)
    unknown = set(options.only or ()) - set(known)
    if unknown:
        raise ValueError(f"--only {', '.join(sorted(unknown))}: no such row; there are {', '.join(known)}")
    chosen = {k: v for k, v in known.items() if not options.only or k in (*options.only, REFERENCE)}
    side = options.side or {"sd15": 16 if options.device == "cpu" else 64, "sdxl": 128, "pocket": 12}[options.preset]
    batch = options.train_batch_size or (4 if options.preset == "pocket" else 1)
    if options.device == "none":
        rows = {name: held(method, options.preset, batch, side) for name, method in chosen.items()}
    else:
        rows = _rows(options, chosen, batch, side)
    for row in rows.values():
        for kind in {"launches", "saved", "peak", "held"} & set(row):
            row[f"{kind}_ratio"] = row[kind] / rows[REFERENCE][kind]
    settings = {**options.as_dict(), "side": side, "train_batch_size": batch}
    return {"settings": settings, "machine": machine(options.device), "rows": rows}


def _rows(options: SpeedOptions, chosen: dict[str, Method], batch: int, side: int) -> dict[str, dict[str, Any]]:
    base = models.unet(options.preset, options.device, DTYPES[options.dtype])
    frozen, inputs = list(base.parameters()), models.inputs(base, batch, side)
    device = frozen[0].device
    steps, rows = {}, {}
    for name, method in chosen.items():
        unet = models.same_numbers(base)
        step = Step(unet, method.adapt(unet), inputs)
        step()  # makes what the optimizer keeps
        steps[name] = step
        rows[name] = {
            "settings": method.settings,
            "trained": sum(value.numel() for value in step.values),
            "launches": launches(step),
            "saved": saved_bytes(step.forward, own_values(unet)),
            "peak": peak_bytes(step, frozen),
        }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            turns[name].append(seconds(step, device))
    for name, row in rows.items():
        for i, kind in enumerate(("processor", "wall")):
            own, other = ([turn[i] for turn in turns[row]] for row in (name, REFERENCE))
            ratios = [a / b for a, b in zip(own, other, strict=True)]
            row[f"{kind}_seconds"] = statistics.median(own)
            row[f"{kind}_ratio"] = statistics.median(ratios)
            row[f"{kind}_quartiles"] = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2
    return rows


def table(result: dict[str, Any]) -> str:
    """A result as a table in Markdown, of the columns that it has."""
    kind = "wall" if result["settings"]["device"].startswith("cuda") else "processor"
    columns = {
        f"{kind}_ratio": "time",
        f"{kind}_quartiles": "quartiles",
        "peak_ratio": "peak memory",
        "held_ratio": "memory held",
        "saved_ratio": "saved for backward",
        "launches_ratio": "launches",
    }
    columns = {key: title for key, title in columns.items() if key in result["rows"][REFERENCE]}
    digits = 2 if "peak_ratio" in columns else 3
    lines = [f"| training step | trained values | {' | '.join(columns.values())} |", "|---" * (len(columns) + 2) + "|"]
    for name, row in result["rows"].items():
        values = [row[key] if isinstance(row[key], list) else [row[key]] for key in columns]
        cells = " | ".join("–".join(f"{value:.{digits}f}" for value in pair) for pair in values)
        lines.append(f"| {name}, {row['settings']} | {row['trained']:,} | {cells} |")
    return "\n".join(lines)


def where(result: dict[str, Any]) -> str:
    """Settings and machine of a result in one sentence, with what 1.00 stands for."""
    settings, place, row = result["settings"], result["machine"], result["rows"][REFERENCE]
    text = f"`{settings['preset']}` shapes, batch {settings['train_batch_size']}, latents of {settings['side']} × "
    text += f"{settings['side']}, {settings['dtype']}; {REFERENCE} = 1 is "
    packages = ", ".join(f"{name} {number}" for name, number in place["packages"].items())
    if settings["device"] == "none":
        size = f"{row['held'] / 2**20:,.0f} MiB held, of which {row['saved'] / 2**20:,.0f} MiB are saved for backward"
        return f"{text}{size}; counted without numbers, the same on every machine; {packages}."
    kind = "wall" if settings["device"].startswith("cuda") else "processor"
    text += f"{row[f'{kind}_seconds']:.2f} s, {row['peak'] / 2**20:,.0f} MiB, {row['saved'] / 2**20:,.0f} MiB and "
    several = "s" if place["threads"] > 1 else ""
    threads = f"{place['threads']} thread{several} of " if settings["device"] == "cpu" else ""
    text += f"{row['launches']:,} launches, on {threads}{place['device']}; medians of {settings['repeats']} turns; "
    return f"{text}{packages}."


REPORT = Report(RESULTS, table, where)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = read_options(SpeedOptions, __doc__, "benchmark.py --speed", argv)
    REPORT.show(measure(options), options.write)
