"""What a run on several domains is given, looked at before anything is drawn or written; errors name the flag."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def named(domain: str, path: Path) -> Iterator[None]:
    """Errors inside name the flag of a domain."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace(f"--instance_data_dir {path}", f"--domain {domain}={path}")) from None
