"""The pictures of each visitor, kept on the server so that a reload of the page finds them again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from ui.studio import Pair, Turn

PICTURES, VISITORS = 48, 256
Shot = tuple[str | None, str]
"""The files of a `Pair`."""


class Session:
    """What one open page has running. Copying it, as gradio does for each page, gives a new one."""

    def __init__(self) -> None:
        self.request, self.preview = Turn(), Turn()
        self.previewed: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return Session()

    def end(self) -> None:
        """Stop all of it."""
        self.request.end()
        self.preview.end()


class History:
    """Files of pictures by visitor, the newest first; the oldest, and visitors not seen for longest, are forgotten."""

    def __init__(self) -> None:
        self._shots: OrderedDict[str, list[Shot]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, visitor: str, pair: Pair, folder: str) -> list[Shot]:
        """Keep a picture as files in gradio's cache, recipes included; what the visitor has now.

        Nothing is kept for a page that has no name for its visitor yet.
        """
        base, picture = (image and store(image, folder) for image in pair)
        assert picture is not None
        if not visitor:
            return [(base, picture)]
        with self._lock:
            shots = self._shots.setdefault(visitor, [])
            shots.insert(0, (base, picture))
            del shots[PICTURES:]
            self._shots.move_to_end(visitor)
            while len(self._shots) > VISITORS:
                self._shots.popitem(last=False)
            return list(shots)

    def of(self, visitor: str) -> list[Shot]:
        """What a visitor has, as far as its files are still there."""
        with self._lock:
            return [shot for shot in self._shots.get(visitor, []) if all(Path(file).exists() for file in _files(shot))]


def store(image: Image.Image, folder: str) -> str:
    """The file of a picture in gradio's cache, with its recipe."""
    return save_pil_to_cache(image, folder, format="png")


def _files(shot: Shot) -> Sequence[str]:
    return [file for file in shot if file]
