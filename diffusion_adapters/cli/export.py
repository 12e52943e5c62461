"""The command `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import COMMANDS, Command, add_blend, count, load_blend


@COMMANDS.register("export")
class Export(Command):
    """Write adapters as one plain LoRA file for other programs.

    An adapter that is low rank is written exactly; of any other the best LoRA is, and the error is printed and stored.
    Several adapters, each times its weight, become one file of their sum.

    The file's keys are those of `pipe.load_lora_weights` (diffusers), of kohya's sd-scripts, which web UIs read, or of
    ComfyUI.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_blend(parser)
        add = parser.add_argument
        add("--output", help="file to write (default: pytorch_lora_weights.safetensors beside the first adapter)")
        add("--dialect", default="diffusers", choices=("diffusers", "kohya", "comfyui"), help="whose keys to use")
        add("--rank", type=count, help="rank kept of what is not low rank (default: 64 if --energy is not given)")
        energy = "share of the squared norm kept of what is not low rank, 0.99 say: each projection has its own rank"
        add("--energy", type=float, help=energy)
        add("--dtype", default="fp32", choices=("fp32", "fp16", "bf16"), help="numbers in the file")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        from .. import export_lora
        from .common import parse_adapter

        pipe, weights = load_blend(args.base, args.file, args.domain)
        first, _ = parse_adapter(args.file[0])
        folder = first if first.is_dir() else first.parent if first.exists() else Path()  # that of a Hub id is this one
        output = args.output or folder / "pytorch_lora_weights.safetensors"
        settings = {"dialect": args.dialect, "rank": args.rank, "energy": args.energy, "dtype": args.dtype}
        report = export_lora(pipe, weights, output, **settings)
        if not report.exact:
            text = f"{report}; a larger --rank or --energy lowers it"
        elif report.relative_error < 1e-6:
            text = "exact"
        else:
            text = f"exact but for the rounding to {args.dtype}, relative error {report.relative_error:.3g}"
        print(f"{report.path}: rank {report.rank}, {text}")
