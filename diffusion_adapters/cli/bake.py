"""The command `bake`."""

from __future__ import annotations

import argparse

from .common import COMMANDS, Command, add_blend, load_blend


@COMMANDS.register("bake")
class Bake(Command):
    """Write a whole pipeline with adapters added to its weights: a checkpoint that needs no adapters any more.

    A folder for `DiffusionPipeline.from_pretrained`, in safetensors; the base that it is made from stays as it is.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_blend(parser)
        parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder to write")
        parser.add_argument("--variant", help="kind of numbers in the names of files, fp16 say")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        from .. import bake

        pipe, weights = load_blend(args.base, args.file, args.domain)
        settings = {} if args.variant is None else {"variant": args.variant}
        path = bake(pipe, weights, args.output, **settings)
        print(f"{path}: {', '.join(f'{name} x {weight.value:g}' for name, weight in weights.items())}")
