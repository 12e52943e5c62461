"""The results of `--inference` in words: tables in Markdown, and what they were measured on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.benchmarks.report import Report

RESULTS = Path(__file__).with_name("inference.json")
"""What was measured last, by shapes and device: the table of README.md."""


def table(result: dict[str, Any]) -> str:
    """A result as a table in Markdown, of the columns that it has."""
    rows, rank = result["rows"], result["settings"]["rank"]
    shown: dict[str, Callable[[dict[str, Any]], str]] = {
        "operations": lambda row: f"{row['operations']} ({row['operations_ratio']:.2f})",
        "matrix products": lambda row: f"{row['products']} ({row['products_ratio']:.2f})",
        "time": lambda row: f"{row['time']:.3f} [{row['quartiles'][0]:.3f}, {row['quartiles'][1]:.3f}]",
        "MiB held": lambda row: f"{row['held'] / 2**20:.1f}",
        "peak": lambda row: f"{row['peak_ratio']:.2f}",
        "ms to change weights": lambda row: f"{row['change_ms']:.2f}" if "change_ms" in row else "",
        "extra operations after it": lambda row: str(row.get("extra_after_change", "")),
    }
    columns = list(shown) if "load" in result else list(shown)[:2]
    lines = [f"| adapters of rank {rank} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(shown[column](row) for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def where(result: dict[str, Any]) -> str:
    """Settings and machine of a result, with what 1 stands for, and what loading took."""
    settings, place, bare = result["settings"], result["machine"], result["rows"]["bare"]
    packages = ", ".join(f"{name} {number}" for name, number in place["packages"].items())
    text = f"`{settings['preset']}` shapes"
    if "load" not in result:
        return f"{text}, counted without numbers, the same on every machine; {packages}."
    text += (
        f", batch {settings['batch_size']}, latents of {settings['side']} × {settings['side']}, {settings['dtype']}; "
    )
    text += f"bare is {bare['seconds']:.2f} s and {bare['peak'] / 2**20:,.0f} MiB at its highest, on "
    several = "s" if place["threads"] > 1 else ""
    text += f"{place['threads']} thread{several} of " if settings["device"] == "cpu" else ""
    text += f"{place['device']}; medians and quartiles of {settings['repeats']} turns. "
    loads = [f"{load['ms']:.0f} ms ({name}, {load['bytes'] / 2**20:.1f} MiB)" for name, load in result["load"].items()]
    return f"{text}A file of one adapter is loaded in {' and '.join(loads)}. {packages}."


REPORT = Report(RESULTS, table, where)
