"""The command `inspect`."""

from __future__ import annotations

import argparse
import json

from .common import COMMANDS, Command
from .families import pairs, title


@COMMANDS.register("inspect")
class Inspect(Command):
    """Tell what an adapter file is: family, options, base, trigger prompt, training settings, size."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", help="adapter file")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        from ..file import read_adapter

        file = read_adapter(args.file)
        info = file.info
        values = sum(t.numel() for places in file.tensors.values() for own in places.values() for t in own.values())
        values += sum(t.numel() for part in file.text.values() for t in part.tensors.values())
        values += sum(part.rows.numel() for part in file.tokens.values())
        rows = {
            "file": f"{file.path} ({file.path.stat().st_size / 1024:.1f} KiB, {values:,} numbers)",
            "family": f"{info.family}: {title(info.family)}",
            "options": pairs(info.config.as_dict()),
            "targets": ", ".join(info.target_modules) if info.target_modules else "all attention projections",
            "trigger": info.trigger or "-",
            "training": pairs(dict(info.training)) or "-",
            "format": json.loads(file.metadata["diffusion-adapters"])["created_by"],
        }
        for component, places in file.tensors.items():
            base = info.base[component]
            rows[component] = f"{base['class']} {base['name']} [{base['fingerprint']}], {len(places)} projections"
        for component, part in file.text.items():
            rows[component] = f"LoRA of rank {part.rank} on {', '.join(part.target_modules)}"
        for component, new in file.tokens.items():
            said = f"new tokens {' '.join(new.tokens)}"
            rows[component] = f"{rows[component]}; {said}" if component in rows else said
        for name, text in rows.items():
            print(f"{name:<14} {text}")
