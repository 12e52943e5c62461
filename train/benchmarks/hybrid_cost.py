"""What a step of a hybrid's training takes, in units of a DreamBooth step: operations, time, memory at its peak."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from train.benchmarks.measure import forward_peak, seconds
from train.dreambooth import DreamBoothOptions, parse, run
from train.flags import HYBRID

REFERENCE = "DreamBooth"
ENDLESS = 10_000
"""Steps of a run that is left before its end."""
FIRST = 8
"""Of them, those on one domain each before the first on all: enough for each domain to be drawn."""
ALL = ["--hybrid_start", str(FIRST / ENDLESS)]
TWO = ["--encoder", "denoiser", "pipelines/pocket/encoder"]
RUNS = {
    REFERENCE: None,
    "on one domain": ["--hybrid_start", "0.99"],
    "on all domains, mixing": ALL,
    "on all domains, mixing, by two encoders": [*ALL, *TWO],
    "on all domains, parts too": [*ALL, "--hybrid_values", "all", "--hybrid_share", "0.99"],
}
"""Row -> flags of a hybrid."""
COLUMNS = {"operations": "multiplications", "cpu": "processor time", "wall": "wall time", "peak": "peak memory"}


def steps_of(family: str, flags: Sequence[str] | None, folder: Path) -> Generator[dict[str, float], None, Any]:
    """A run as `train/dreambooth.py` makes it, a step for each item: of a hybrid, or, without flags, of one subject."""
    sources = str(folder.parent / "sources")
    several = ["--adapter", HYBRID, "--family", family, "--source_data_dir", sources, *(flags or ())]
    own = ["--adapter", family] if flags is None else several
    shared = {"output_dir": folder, "max_train_steps": ENDLESS, "num_validation_images": 0, "checkpointing_steps": 0}
    told = [word for name, value in shared.items() for word in (f"--{name}", str(value))]
    return run(*parse(DreamBoothOptions, None, [*own, *told]))


def measure(family: str, folder: Path, repeats: int = 15) -> dict[str, dict[str, float]]:
    """Row -> median of each column over its value for the DreamBooth step of the same turn; runs take turns."""
    device = torch.device("cpu")
    with contextlib.ExitStack() as stack:
        runs = {}
        for number, (name, flags) in enumerate(RUNS.items()):
            runs[name] = stack.enter_context(contextlib.closing(steps_of(family, flags, folder / str(number))))
            for _ in range(FIRST + 1):  # on one domain, then on all; what the optimizer keeps is made
                next(runs[name])
        found: dict[str, dict[str, list[float]]] = {name: {column: [] for column in COLUMNS} for name in RUNS}
        for _ in range(repeats):
            for name, one in runs.items():
                cpu, wall = seconds(lambda one=one: next(one), device)  # type: ignore[misc]
                found[name]["cpu"].append(cpu)
                found[name]["wall"].append(wall)
        for name, one in runs.items():
            peaks = [forward_peak(lambda one=one: next(one), device) for _ in range(3)]  # type: ignore[misc]
            found[name]["peak"] = [max(peaks)] * repeats
            with FlopCounterMode(display=False) as counter:
                next(one)
            found[name]["operations"] = [counter.get_total_flops()] * repeats
    return {
        name: {
            column: statistics.median(a / b for a, b in zip(values, found[REFERENCE][column], strict=True))
            for column, values in own.items()
        }
        for name, own in found.items()
    }


def table(cost: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row per kind of step."""
    lines = [f"| a step | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{own[column]:.2f}' for column in COLUMNS)} |" for name, own in cost.items()]
    return "\n".join(lines)
