"""A script from its command line to its exit code, with one line for an error that is no bug."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from diffusion_adapters.options import Options, add_arguments, argument_parser, from_namespace
from train.progress import show_log
from train.redact import redact

S = TypeVar("S", bound=Options)


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Make a `main` out of a function of the command line: log lines are shown, and what it returns is an exit code.

    That is the function's own, or 0; 2, with one line on stderr, for a mistake of the user or of the machine; 130 where
    Ctrl-C ended it. What can only be a bug is raised.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        show_log()
        try:
            return main(argv) or 0
        except KeyboardInterrupt:
            line, code = "error: interrupted", 130
        except Exception as error:
            said = explain(error)
            if said is None:
                raise
            line, code = said, 2
        print(line, file=sys.stderr)
        return code

    return run


def read_options(kind: type[S], description: str | None, name: str | None, argv: Sequence[str] | None) -> S:
    """The options of a script called `name` (default: its file) from a command line; `--help` and argparse exit."""
    parser = argument_parser(description, prog=name)
    add_arguments(parser, kind)
    return from_namespace(kind, parser.parse_args(argv))


def explain(error: Exception) -> str | None:
    """One line for a mistake of the user or of the machine; None for what can only be a bug and needs its traceback."""
    line = _line(error)
    return None if line is None else redact(line)


def _line(error: Exception) -> str | None:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = Path(trace.tb_frame.f_code.co_filename).parts if trace else ()
    ours = bool({"train", "diffusion_adapters"} & set(place)) and "site-packages" not in place
    if isinstance(error, OSError):
        remedy = "; free some space and try again" if error.errno == errno.ENOSPC else ""
        said = str(error) if error.filename or not error.strerror else error.strerror
        return f"error: {' '.join(said.split())}{remedy}"
    if type(error).__name__ == "OutOfMemoryError":
        remedy = "lower --train_batch_size or --resolution, or use --gradient_checkpointing, --mixed_precision bf16"
        return f"error: out of memory: {str(error).splitlines()[0]}; {remedy}"
    return f"error: {error}" if ours and isinstance(error, (ValueError, TypeError, RuntimeError)) else None
