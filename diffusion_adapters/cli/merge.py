"""The command `merge`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from ..merge import MERGERS
from ..options import Options
from .common import COMMANDS, Command, add_blend, load_blend


@COMMANDS.register("merge")
class Merge(Command):
    """Merge adapters of any families into one adapter file, which is used like any other.

    The result is a LoRA. linear and cat keep the sum of the adapters, each times its weight, exactly; the other methods
    make room where adapters are in each other's way, and say how far the LoRA is from what they ask for.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_blend(parser)
        add = parser.add_argument
        add("--output", default="merged.safetensors", help="adapter file to write")
        add("--method", default="linear", choices=list(MERGERS), metavar="METHOD", help="one of those below")
        parser.epilog = "\n".join(["methods:", *(f"  {name:<20}{method_title(name)}" for name in MERGERS)])
        for name, (methods, field) in method_options().items():
            kind, many = _kind(methods[0], name)
            said = "" if len(methods) == len(MERGERS) else f"{', '.join(methods)}: "
            said += field.metadata["help"] + ("" if field.default is None else f" (default: {field.default})")
            settings = {"type": kind, "nargs": "+" if many else None, "choices": field.metadata["choices"]}
            if settings["choices"] is None:
                settings["metavar"] = {int: "N", float: "X"}.get(kind, "TEXT")
            add(f"--{name}", help=said, **settings)

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        from .. import merge_adapters, save_adapter

        options = {name: getattr(args, name) for name in method_options() if getattr(args, name) is not None}
        MERGERS[args.method].Config.from_mapping(options)  # loading the base can take minutes
        pipe, weights = load_blend(args.base, args.file, args.domain)
        name = Path(args.output).stem.replace(".", "_") or "merged"
        name = next(new for new in (name, f"{name}_merged") if new not in weights)
        report = merge_adapters(pipe, weights, name, method=args.method, **options)
        path = save_adapter(pipe, name, args.output)
        error = "exact" if report.exact else f"{report}; a larger --rank or --energy lowers it"
        print(f"{path}: rank {report.rank}, {error}")


def method_title(method: str) -> str:
    """What a method does, in a few words."""
    text = sys.modules[MERGERS[method].__module__].__doc__ or ""
    return text.strip().splitlines()[0].partition(": ")[2].rstrip(".")


def method_options() -> dict[str, tuple[list[str], dataclasses.Field[object]]]:
    """Option -> the methods that have it, and its declaration."""
    found: dict[str, tuple[list[str], dataclasses.Field[object]]] = {}
    for method in MERGERS:
        for field in dataclasses.fields(MERGERS[method].Config):
            found.setdefault(field.name, ([], field))[0].append(method)
    return found


def _kind(method: str, name: str) -> tuple[type, bool]:
    config: type[Options] = MERGERS[method].Config
    kind, _ = config.kinds()[name]
    return (config.items(name), True) if kind is tuple else (kind, False)
