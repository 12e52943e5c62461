"""What a picture was made from, written into its PNG as text, and read back from files that nobody vouches for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from PIL import Image, PngImagePlugin

from ui.request import LARGEST, Dial, Request, decode_image, encode_image

KEY = "diffusion_adapters"
"""The keyword of the text chunk."""
VERSION = 1
MAX_BYTES = 32 * 2**20
"""Of a picture that is given back."""
MAX_ADAPTERS = 64
PARTS = {"version", "request", "adapters", "files", "image"}
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """Settings, adapters by name, SHA-256 of their files by name, and what was drawn from."""

    request: Request
    adapters: Mapping[str, Dial] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    image: Image.Image | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON wants them."""
        own = {"version": VERSION, "request": self.request.as_dict()}
        own |= {"adapters": {name: dial.changed() for name, dial in self.adapters.items()}, "files": dict(self.files)}
        return own if self.image is None else own | {"image": encode_image(self.image)}

    def written(self, picture: Image.Image) -> Image.Image:
        """The picture with the recipe in `info`, from where it goes into a PNG's text."""
        picture.info[KEY] = json.dumps(self.as_dict())
        return picture

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Checked. Raises ValueError, TypeError."""
        if not isinstance(values, dict):
            raise TypeError(f"a recipe must be a mapping, got {type(values).__name__}")
        version = values.get("version")
        if version != VERSION:
            raise ValueError(f"a recipe of version {version!r}; this program reads version {VERSION}")
        unknown = sorted(set(values) - PARTS)
        if unknown:
            raise ValueError(f"a recipe has no part {unknown[0]!r}")
        request, adapters, files = (values.get(part, {}) for part in ("request", "adapters", "files"))
        if not all(isinstance(part, dict) for part in (request, adapters, files)):
            raise TypeError("request, adapters and files of a recipe must be mappings")
        if len(adapters) > MAX_ADAPTERS:
            raise ValueError(f"a recipe of {len(adapters)} adapters; at most {MAX_ADAPTERS} are read")
        digests = {name: text for name, text in files.items() if re.fullmatch("[0-9a-f]{64}", str(text))}
        image = values.get("image")
        if image is not None and not isinstance(image, str):
            raise TypeError("image of a recipe must be text")
        return cls(
            Request.from_page(request), {name: Dial.read(name, dial) for name, dial in adapters.items()}, digests,
            None if image is None else decode_image(image, "image"),
        )  # fmt: skip

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The recipe in a PNG. Raises ValueError, TypeError with what is wrong."""
        return read_png(path, {KEY: cls.from_dict})


def read_png(path: str | Path, readers: Mapping[str, Callable[[Any], T]]) -> T:
    """What the JSON in a text chunk of a PNG says, by the reader of its keyword. The picture need not be sound.

    Raises ValueError, TypeError with what is wrong.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_BYTES // 2**20} MiB")
    try:
        with Image.open(path, formats=("PNG",)) as image:
            assert isinstance(image, PngImagePlugin.PngImageFile)
            key = next((key for key in readers if image.info.get(key)), "")
            if not key and max(image.size) <= LARGEST:  # what stands after the picture is found by decoding it
                key = next((key for key in readers if image.text.get(key)), "")
            text = image.info.get(key) or (key and image.text[key])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} is no PNG that can be read: {error}") from None
    if not text:
        raise ValueError(f"{path.name} has no recipe: it was not made here, or another program saved it anew")
    try:
        values = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: its recipe is damaged: {error}") from None
    try:
        return readers[key](values)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path.name}: {error}") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of a recipe")
