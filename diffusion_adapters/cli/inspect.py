"""The command `inspect`."""

from __future__ import annotations

import argparse
import json

from .common import COMMANDS, Command


@COMMANDS.register("inspect")
class Inspect(Command):
    """Tell what an adapter file is, whoever wrote it: family, base, trigger words, training, and whether it fits."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("file", help="adapter file, folder with one, or Hub id")
        add("--base", help="folder or Hub id of a pipeline to hold it against: is every layer of it applied there?")
        add("--json", action="store_true", help="print it as JSON")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        from .. import inspect_adapter

        report = inspect_adapter(args.file, args.base)
        print(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) if args.json else report)
