"""Personalize diffusers pipelines with adapters: make pictures, look into files, export, merge and bake them."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from inspect import getdoc

from ..options import argument_parser
from .common import COMMANDS


def parser() -> argparse.ArgumentParser:
    """The command line: one command for each file here that registers one."""
    main = argument_parser(__doc__, prog="python -m diffusion_adapters")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        text = getdoc(COMMANDS[name]) or ""
        title = text.partition("\n")[0].rstrip(".")
        made = commands.add_parser(
            name,
            help=title[0].lower() + title[1:],
            description=text,
            formatter_class=main.formatter_class,
            allow_abbrev=False,
        )
        COMMANDS[name].add_arguments(made)
        made.set_defaults(run=COMMANDS[name].run)
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it went well, 2 with one line on stderr if not."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:
        return 0
    except (ValueError, TypeError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        remedy = "; free some space and try again" if error.errno == errno.ENOSPC else ""
        print(f"error: {error}{remedy}", file=sys.stderr)
        return 2
    return 0
