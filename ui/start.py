"""How the process of the app starts: sooner than it would, and with a place of its own for files."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

CACHE = "GRADIO_TEMP_DIR"
"""The variable in which gradio looks, at each upload, for the folder of its files."""
STUBS = ("gradio.component_meta", "create_or_modify_pyi")
"""The module and the function of gradio that rewrite type stubs, which editors read, in its own folder."""


@contextmanager
def own_cache() -> Iterator[None]:
    """Inside, gradio keeps files in a folder that goes at the end; its default is one for all users of a computer."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(prefix="diffusion-adapters-", ignore_cleanup_errors=True) as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no garbage is looked for: what is imported stays, and seconds go into finding that out.

    What is there at the end is never looked through again.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


class Stubless(MetaPathFinder):
    """Has gradio leave its type stubs as they are, which takes half of its import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """That of gradio's module, which once it is executed writes no stubs; None for all others."""
        if name != STUBS[0]:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def without(module: ModuleType) -> None:
                execute(module)
                setattr(module, STUBS[1], lambda *component: None)

            loader.exec_module = without
        return spec


def without_stubs() -> None:
    """To be called before gradio is imported."""
    sys.meta_path.insert(0, Stubless())
