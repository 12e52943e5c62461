"""Time, memory and launches of a training step: our families beside PEFT and LyCORIS on the same UNet.

All rows stand in one process on one frozen UNet with random numbers; their steps take turns, and each is compared with
the step of PEFT's LoRA in the same turn. Peak memory is that of adapters, optimizer and activations, without the UNet.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffusion_adapters.options import Options, add_arguments, argument_parser, from_namespace, option
from train.benchmarks import models
from train.benchmarks.measure import Step, launches, peak_bytes, saved_bytes, seconds
from train.benchmarks.methods import REFERENCE, methods

RESULTS = Path(__file__).with_name("speed.json")
"""What was measured last, by preset and device: the table of README.md."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(Options):
    preset: str = option("pocket", "shapes of the UNet", choices=models.PRESETS)
    side: int | None = option(None, "side of the latents (default: what the model is made for; 16 if sd15)", ge=8)
    train_batch_size: int | None = option(None, "pictures per step (default: 4 of pocket, else 1)", ge=1)
    dtype: str = option("fp32", "of the frozen UNet; what is trained is fp32", choices=tuple(DTYPES))
    device: str = option("cpu", "cpu, cuda, cuda:1 ...")
    rank: int = option(4, "rank of LoRA, and of what has one beside it", ge=1)
    repeats: int = option(9, "timed steps of each row", ge=1)
    only: tuple[str, ...] | None = option(None, f"rows to measure beside {REFERENCE} (default: all)")
    write: bool = option(False, f"keep the result in {RESULTS.name}, of which README.md shows a table")


def measure(options: SpeedOptions) -> dict[str, Any]:
    """Settings, machine, and for each row what `measure.py` says and its ratios to `REFERENCE`."""
    side = options.side or (16 if options.preset == "sd15" else None)
    batch = options.train_batch_size or (4 if options.preset == "pocket" else 1)
    base = models.unet(options.preset, options.device, DTYPES[options.dtype])
    frozen, inputs = list(base.parameters()), models.inputs(base, batch, side)
    device = frozen[0].device
    known = methods(options.rank)
    unknown = set(options.only or ()) - set(known)
    if unknown:
        raise ValueError(f"--only {', '.join(sorted(unknown))}: no such row; there are {', '.join(known)}")
    steps, rows = {}, {}
    for name, method in known.items():
        if options.only and name not in (*options.only, REFERENCE):
            continue
        unet = models.same_numbers(base)
        step = Step(unet, method.adapt(unet), inputs)
        step()  # makes what the optimizer keeps
        steps[name] = step
        rows[name] = {
            "settings": method.settings,
            "trained": sum(value.numel() for value in step.values),
            "launches": launches(step),
            "saved": saved_bytes(step),
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
        for kind in ("launches", "saved", "peak"):
            row[f"{kind}_ratio"] = row[kind] / rows[REFERENCE][kind]
    settings = {**options.as_dict(), "side": side or base.config.sample_size, "train_batch_size": batch}
    return {"settings": settings, "machine": machine(device), "rows": rows}


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on besides the settings."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    packages = {}
    for package in ("torch", "diffusers", "peft", "lycoris-lora"):
        try:
            packages[package] = version(package)
        except ModuleNotFoundError:
            continue
    return {"device": name, "threads": torch.get_num_threads(), "packages": packages}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(result: dict[str, Any]) -> str:
    """A result as a table in Markdown, with a line on where it comes from."""
    kind = "wall" if result["settings"]["device"].startswith("cuda") else "processor"
    lines = ["| training step | trained values | time | quartiles | peak memory | saved for backward | launches |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, row in result["rows"].items():
        spread = "–".join(f"{value:.2f}" for value in row[f"{kind}_quartiles"])
        cells = [f"{row['trained']:,}", f"{row[f'{kind}_ratio']:.2f}", spread]
        cells += [f"{row[f'{key}_ratio']:.2f}" for key in ("peak", "saved", "launches")]
        lines.append(f"| {name}, {row['settings']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def where(result: dict[str, Any]) -> str:
    """Settings and machine of a result in one sentence, with what 1.00 stands for."""
    settings, place, row = result["settings"], result["machine"], result["rows"][REFERENCE]
    size = f"batch {settings['train_batch_size']}, latents of {settings['side']} × {settings['side']}"
    numbers = f"{row['processor_seconds']:.2f} s, {row['peak'] / 2**20:.0f} MiB, {row['saved'] / 2**20:.0f} MiB"
    several = "s" if place["threads"] > 1 else ""
    threads = f"{place['threads']} thread{several} of " if settings["device"] == "cpu" else ""
    return (
        f"`{settings['preset']}` shapes, {size}, {settings['dtype']}, rank {settings['rank']}, on {threads}"
        f"{place['device']}; {REFERENCE} = 1.00 is {numbers} and {row['launches']:,} launches; "
        f"medians of {settings['repeats']} turns; {', '.join(f'{k} {v}' for k, v in place['packages'].items())}."
    )


def keep(result: dict[str, Any], path: Path = RESULTS) -> None:
    """Put the result in the place of the one of the same shapes and device."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[f"{result['settings']['preset']} {result['settings']['device'].partition(':')[0]}"] = result
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argument_parser(__doc__, prog="benchmark.py --speed")
    add_arguments(parser, SpeedOptions)
    options = from_namespace(SpeedOptions, parser.parse_args(argv))
    result = measure(options)
    print(table(result), where(result), sep="\n\n")
    if options.write:
        keep(result)
