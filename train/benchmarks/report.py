"""What benchmarks of costs print, and keep for README.md: results by shapes and device."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from train.output import write


@dataclass(frozen=True)
class Report:
    """How a benchmark's results read, in Markdown, and the file of the last of each shapes and device."""

    path: Path
    table: Callable[[dict[str, Any]], str]
    where: Callable[[dict[str, Any]], str]

    def text(self, result: dict[str, Any]) -> str:
        """The table, and under it where it was measured."""
        return f"{self.table(result)}\n\n{self.where(result)}"

    def show(self, result: dict[str, Any], keep: bool) -> None:
        """Print a result, and keep it if that was asked for."""
        print(self.text(result))
        if keep:
            self.keep(result)

    def keep(self, result: dict[str, Any]) -> None:
        """Put the result in the place of the one of the same shapes and device."""
        known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        known[f"{result['settings']['preset']} {result['settings']['device'].partition(':')[0]}"] = result
        write(self.path, lambda path: path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8"))

    def kept(self) -> str:
        """All results that were kept."""
        return "\n\n".join(map(self.text, json.loads(self.path.read_text(encoding="utf-8")).values()))


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on besides the settings."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
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
