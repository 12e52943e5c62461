"""Open the app: make pictures with the adapters in a folder, blend them, compare them with the base."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_adapters.options import argument_parser
from ui.start import own_cache, uncollected, without_stubs


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argument_parser(__doc__, prog="python -m ui")
    add = main.add_argument
    places = "adapter files, or folders to search for them (default: runs and dreambooth-* in this folder)"
    add("--adapters", nargs="+", default=[], metavar="PATH", help=places)
    own = "the app's own folder of adapters, where uploads and merges go (default: adapters); it writes nowhere else"
    add("--library", default="adapters", metavar="FOLDER", help=own)
    add("--max_upload", type=int, default=1024, metavar="MIB", help="largest file that is taken in (default: 1024)")
    more = "folders or Hub ids of diffusers pipelines, the first to begin with (default: the embedded base)"
    add("--base", nargs="+", default=[], metavar="PIPELINE", help=more)
    add("--port", type=int, metavar="N", help="port to listen on (default: the first free one from 7860)")
    add("--listen", action="store_true", help="let other hosts reach the app; wants --auth or --no-auth")
    access = main.add_mutually_exclusive_group()
    access.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this name and password")
    access.add_argument("--no-auth", action="store_true", help="with --listen: let in whoever can reach the port")
    return main


def access(args: argparse.Namespace) -> dict[str, Any]:
    """Address and password for `Blocks.launch`. Raises ValueError for an open door that nobody asked for."""
    user, _, password = (args.auth or "").partition(":")
    if args.auth is not None and not (user and password):
        raise ValueError("--auth must be USER:PASSWORD, neither of them empty")
    if args.listen and not args.auth and not args.no_auth:
        raise ValueError(
            "--listen lets other hosts in: add --auth USER:PASSWORD, or --no-auth to do without a password"
        )
    if args.max_upload < 1:
        raise ValueError(f"--max_upload must be at least 1 MiB, got {args.max_upload}")
    if args.port is not None and not 0 < args.port < 65536:
        raise ValueError(f"--port must be from 1 to 65535, got {args.port}")
    return {
        "server_name": "0.0.0.0" if args.listen else "127.0.0.1",
        "server_port": args.port,
        "max_file_size": f"{args.max_upload}mb",
        "auth": (user, password) if args.auth else None,
    }


def serve(args: argparse.Namespace) -> None:
    """Load the base, look through the library, open the page, and stay until interrupted."""
    start = time.perf_counter()
    settings = access(args)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with own_cache():
        with uncollected():
            page, said = opened(args, settings)
        print(f"{said} Ready in {time.perf_counter() - start:.1f} s.")
        print(f"Open {page.local_url} in a browser; Ctrl+C ends the app.", flush=True)
        page.block_thread()


def opened(args: argparse.Namespace, settings: Mapping[str, Any]) -> tuple[Any, str]:
    """The served page, and what the library holds."""
    without_stubs()
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise RuntimeError('the app needs gradio: pip install -e ".[ui]" -c constraints.txt') from None
    from ui.app import build, open_page
    from ui.bases import Base
    from ui.library import Library
    from ui.studio import Studio

    library = Library([Path(place) for place in args.adapters], Path(args.library))
    studio = Studio([Base.of(source) for source in args.base or [None]], library, open_to_bases=not args.listen)
    entries = library.scan(studio.base())
    refused = sum(entry.report is None for entry in entries)
    page = build(studio)
    try:
        open_page(page, prevent_thread_lock=True, **settings)
    except OSError as error:
        where = f"--port {args.port} is" if args.port else "ports 7860 to 7959 are"
        raise OSError(f"{where} not free: give another --port") from error
    return page, f"{len(entries) - refused} adapters, {refused} refused."


def main(argv: Sequence[str] | None = None) -> int:
    """Open the app; 2 with one line on stderr if that cannot be."""
    try:
        serve(parser().parse_args(argv))
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
