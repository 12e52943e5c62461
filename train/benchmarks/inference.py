"""What N rank-16 LoRA adapters cost in a forward: bare, ours and PEFT on one UNet with random numbers, in one process.

Operations are calls that reach the dispatcher, views apart, attention as one; products are matrix products among them.
Each timed forward stands between two of the bare UNet, with whose mean it is compared. Memory is what tensors take
beside the base, and the highest point of a forward above it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion_adapters import load_adapter, save_adapter
from diffusion_adapters.options import Options, option
from train.benchmarks import models
from train.benchmarks.blends import WEIGHTS, Blend, blends, ours, peft
from train.benchmarks.inference_report import REPORT, RESULTS
from train.benchmarks.measure import forward_peak, live_tensors, only_what_is_new, seconds
from train.benchmarks.ops import OpCounter, count_ops
from train.benchmarks.report import machine
from train.benchmarks.speed import DTYPES
from train.script import command, read_options


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(Options):
    preset: str = option("sd15", "shapes of the UNet", choices=models.PRESETS)
    side: int | None = option(None, "side of the latents (default: the model's own; 16 of sd15 on a CPU)", ge=8)
    batch_size: int = option(2, "pictures per forward, an even number", ge=2)
    dtype: str = option("fp32", "of the UNet", choices=tuple(DTYPES))
    device: str = option("cpu", "cpu, cuda, cuda:1 ...; none: operations alone, counted without numbers")
    rank: int = option(16, "rank of every adapter", ge=1)
    adapters: tuple[int, ...] = option((1, 2, 4, 8), "numbers of adapters", ge=1)
    repeats: int = option(9, "timed forwards of each row", ge=1)
    changes: int = option(30, "timed changes of weights", ge=1)
    write: bool = option(False, f"keep the result in {RESULTS.name}, of which README.md shows a table")


def measure(options: InferenceOptions) -> dict[str, Any]:
    """Settings, machine, rows, and seconds that it takes to load a file."""
    side = options.side or (16 if options.preset == "sd15" and options.device == "cpu" else None)
    settings = {**options.as_dict(), "side": side}
    chosen = blends(options.adapters)
    if options.device == "none":
        rows = {}
        for name, blend in chosen.items():
            if not blend.numbers:
                unet = models.unet(options.preset, "meta")
                blend.adapt(unet, options.rank)
                rows[name] = counts(unet)
        return {"settings": settings, "machine": machine("none"), "rows": with_ratios(rows)}
    base = models.unet(options.preset, options.device, DTYPES[options.dtype])
    inputs = models.inputs(base, options.batch_size, side)
    with only_what_is_new():
        rows, load = _rows(base, chosen, options, inputs), _load(base, options.rank)
    settings["side"] = side or base.config.sample_size
    return {"settings": settings, "machine": machine(options.device), "rows": rows, "load": load}


def _rows(base: Any, chosen: dict[str, Blend], options: InferenceOptions, inputs: Any) -> dict[str, dict[str, Any]]:
    rows, forwards = {}, {}
    for name, blend in chosen.items():
        unet, rows[name] = _adapted(base, blend, options.rank, inputs)
        forwards[name] = _forward(unet, inputs)
        if blend.changes:
            rows[name]["change_ms"] = 1e3 * _change(unet, blend, options.changes)
    _time(rows, forwards, options.repeats, next(base.parameters()).device)
    return with_ratios(rows)


def counts(unet: Any) -> dict[str, int]:
    """Operations and matrix products of a forward; they do not depend on the size of the picture."""
    counted = count_ops(unet, 2, 8)
    return {"operations": counted.total, "products": counted.products}


def _adapted(base: Any, blend: Blend, rank: int, inputs: Any) -> tuple[Any, dict[str, Any]]:
    unet = blend.start(base)
    before = live_tensors()
    blend.adapt(unet, rank)
    row: dict[str, Any] = counts(unet)  # whose forward makes what is kept between forwards
    row["held"] = live_tensors().bytes - before.bytes
    row["peak"] = forward_peak(_forward(unet, inputs), next(base.parameters()).device)
    if blend.changes:
        forward = _forward(unet, models.inputs(base, 2, 8))
        blend.change(unet, WEIGHTS[1])
        with OpCounter() as first:
            forward()
        row["extra_after_change"] = first.total - row["operations"]
    return unet, row


def _forward(unet: Any, inputs: Any) -> Callable[[], None]:
    arguments, extra = inputs

    @torch.no_grad()
    def forward() -> None:
        unet(*arguments, **extra, return_dict=False)

    return forward


def _change(unet: Any, blend: Blend, repeats: int) -> float:
    taken = []
    for i in range(repeats + 2):  # the first two warm up
        start = time.perf_counter()
        blend.change(unet, WEIGHTS[i % 2])
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def _time(rows: dict[str, Any], forwards: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> None:
    kind = "wall" if device.type == "cuda" else "processor"
    column = ("processor", "wall").index(kind)
    ratios: dict[str, list[float]] = {name: [] for name in rows}
    bare: list[float] = []
    for forward in forwards.values():
        forward()
    for _ in range(repeats):
        before = seconds(forwards["bare"], device)[column]
        for name in list(rows)[1:]:
            own = seconds(forwards[name], device)[column]
            after = seconds(forwards["bare"], device)[column]
            ratios[name].append(2 * own / (before + after))
            ratios["bare"].append(after / before)
            bare.append(after)
            before = after
    rows["bare"]["seconds"] = statistics.median(bare)
    for name, row in rows.items():
        row["time"] = statistics.median(ratios[name])
        row["quartiles"] = statistics.quantiles(ratios[name], n=4)[::2] if len(ratios[name]) > 1 else ratios[name] * 2


def with_ratios(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows with each count and peak beside that of the first, the bare one."""
    bare = next(iter(rows.values()))
    for row in rows.values():
        for kind in {"operations", "products", "peak"} & set(row):
            row[f"{kind}_ratio"] = row[kind] / bare[kind]
    return rows


def _load(base: Any, rank: int, repeats: int = 5) -> dict[str, Any]:
    """Milliseconds from a file to an adapter at work, and the file's bytes."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        unet = models.same_numbers(base)
        ours(unet, 1, rank)
        file = save_adapter(unet, "a0", Path(folder) / "ours.safetensors")
        other = models.same_numbers(base)
        peft(other, 1, rank)
        other.save_lora_adapter(folder, adapter_name="a0", weight_name="peft.safetensors")
        readers: dict[str, Callable[[Any], Any]] = {
            "ours": lambda fresh: load_adapter(fresh, file, "a"),
            "PEFT": lambda fresh: fresh.load_lora_adapter(folder, weight_name="peft.safetensors", prefix=None),
        }
        for name, read in readers.items():
            taken = []
            for _ in range(repeats):
                fresh = models.same_numbers(base)
                start = time.perf_counter()
                read(fresh)
                taken.append(time.perf_counter() - start)
            size = (Path(folder) / f"{name.lower()}.safetensors").stat().st_size
            found[name] = {"ms": 1e3 * statistics.median(taken), "bytes": size}
    return found


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = read_options(InferenceOptions, __doc__, "benchmark.py --inference", argv)
    REPORT.show(measure(options), options.write)
