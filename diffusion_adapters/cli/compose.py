"""The command `compose`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import COMMANDS, Command, load_base


@COMMANDS.register("compose")
class Compose(Command):
    """Make one hybrid of adapter files, a domain each, whose dials are set at run time.

    Without training it is their sum: every mixing coefficient is 1.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("part", nargs="+", metavar="DOMAIN=FILE", help="adapter file of a domain; two at least")
        parser.add_argument("--base", help="pipeline that they were trained on (default: the embedded base)")
        parser.add_argument("--output", default="hybrid.safetensors", help="adapter file to write")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        from .. import compose_adapters, inspect_adapter, load_adapter, save_adapter

        files: dict[str, Path] = {}
        for text in args.part:
            domain, equals, path = text.partition("=")
            if not (domain and equals and path):
                raise ValueError(f"{text}: must be DOMAIN=FILE, such as night=night.safetensors")
            if domain in files:
                raise ValueError(f"{text}: domain {domain!r} is named twice")
            files[domain] = Path(path)
        for path in files.values():
            inspect_adapter(path)  # loading the base can take minutes
        pipe = load_base(args.base)
        names = {domain: load_adapter(pipe, path, f"part {domain}") for domain, path in files.items()}
        name = Path(args.output).stem.replace(".", "_") or "composed"
        compose_adapters(pipe, name, names)
        print(f"{save_adapter(pipe, name, args.output)}: domains {', '.join(names)}")
