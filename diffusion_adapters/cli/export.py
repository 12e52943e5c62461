"""The command `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import COMMANDS, Command, count, load_base


@COMMANDS.register("export")
class Export(Command):
    """Write an adapter as a plain LoRA file for any program that reads diffusers LoRA files."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("file", help="adapter file")
        add("--base", help="pipeline that the adapter was trained on (default: the embedded base)")
        add("--output", help="LoRA file to write (default: pytorch_lora_weights.safetensors beside the adapter)")
        add("--rank", type=count, default=64, help="rank kept of what is not low rank (default: 64)")
        add("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="default: float32")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        import torch

        from .. import export_lora, load_adapter
        from ..file import read_adapter

        read_adapter(args.file)
        pipe = load_base(args.base)
        name = load_adapter(pipe, args.file)
        output = args.output or str(Path(args.file).with_name("pytorch_lora_weights.safetensors"))
        report = export_lora(pipe, name, output, rank=args.rank, dtype=getattr(torch, args.dtype))
        if report.exact:
            print(f"{report.path}: rank {report.rank}, exact")
        else:
            print(
                f"{report.path}: rank {report.rank}, relative error {report.relative_error:.3g} "
                f"(worst {report.worst_error:.3g} at {report.worst_place}); a larger --rank lowers it"
            )
