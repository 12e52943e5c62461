"""What a user asks for: a picture's settings, and how each adapter acts in it, as plain checked values."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from diffusion_adapters import AdapterWeight, parse_prompt
from diffusion_adapters.options import Options, option

LARGEST = 2048
"""Pixels of the longest side of a picture that is made or taken in."""
DATA = "data:image/png;base64,"


class PageOptions(Options):
    """Options whose values come from controls and from JSON, which know no difference between 20 and 20.0."""

    @classmethod
    def from_page(cls, values: Mapping[str, Any]) -> Any:
        """Checked. Raises ValueError, TypeError."""
        kinds = cls.kinds()
        whole = {k: int(v) for k, v in values.items() if _is_whole(v) and kinds.get(k, (None,))[0] is int}
        return cls.from_mapping({**values, **whole})

    @classmethod
    def control(cls, name: str) -> dict[str, Any]:
        """Keyword arguments of the control of field `name`: default and help."""
        field = cls.__dataclass_fields__[name]
        return {"value": field.default, "info": field.metadata["help"]}

    @classmethod
    def bounds(cls, name: str) -> tuple[float, float]:
        """Lowest and highest value of field `name`."""
        limits = cls.__dataclass_fields__[name].metadata["bounds"]
        return limits["ge"], limits["le"]

    def changed(self) -> dict[str, Any]:
        """Names and values that are not the defaults, as JSON wants them."""
        fields = self.__dataclass_fields__
        values = {name: value for name, value in self.as_dict().items() if value != fields[name].default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


@dataclass(frozen=True, kw_only=True)
class Request(PageOptions):
    """What a user asks for. Its bounds are those of the controls and of the API."""

    prompt: str = option("", "What to draw; <lora:NAME:0.8> calls up an adapter. Shift+Enter draws it.")
    negative_prompt: str = option("", "What to keep out of the picture.")
    seed: int = option(0, "The same seed with the same settings repeats the picture.", ge=0, le=2**32 - 1)
    steps: int = option(20, "Denoising steps: more is slower and finer.", ge=1, le=100)
    guidance_scale: float = option(2.5, "How strongly the picture follows the prompt.", ge=0, le=20)
    num_images: int = option(1, "Each has the next seed.", ge=1, le=8)
    sampler: str = option("", "How the noise is taken away. Empty: the base's own.")
    width: int = option(0, "Pixels. 0: the base's own.", ge=0, le=LARGEST)
    height: int = option(0, "Pixels. 0: the base's own.", ge=0, le=LARGEST)
    strength: float = option(0.6, "How much of the source picture is drawn anew; 1 is all of it.", ge=0.05, le=1)
    base: str = option("", "The model that draws. Empty: the one that the app was opened with.")


def seed_of(request: Request, number: int) -> int:
    """The seed of the picture `number` of a request."""
    return (request.seed + number) % 2**32


@dataclass(frozen=True, kw_only=True)
class Dial(PageOptions):
    """How one adapter acts in a picture: what `AdapterWeight` takes, as plain values."""

    weight: float = option(1.0, "0 is the base, 1 is as trained.", ge=-10, le=10)
    start: float = option(0.0, "The part of the steps after which it acts.", ge=0, le=1)
    end: float = option(1.0, "The part of the steps up to which it acts.", ge=0, le=1)
    bands: tuple[float, ...] | None = option(None, "Gains from coarse to fine.", ge=-10, le=10)
    scopes: Mapping[str, float] | None = option(None, "Component, block or projection, and its gain.")
    domains: Mapping[str, float] | None = option(None, "Domain of a hybrid, and its gain.")
    mask: str | None = option(None, "Where it acts: a PNG as a data URI, white is 1.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.as_weight()

    @classmethod
    def read(cls, name: str, given: Any) -> Dial:
        """That of adapter `name`, from a Dial, a number, or a mapping of its fields. Raises ValueError, TypeError."""
        if isinstance(given, Dial):
            return given
        try:
            return cls.from_page(given if isinstance(given, Mapping) else {"weight": given})
        except (ValueError, TypeError) as error:
            raise type(error)(f"adapter {name!r}: {error}") from None

    def as_weight(self, factor: float = 1.0) -> AdapterWeight:
        """The weight for the library, times `factor`."""
        given = {"scopes": self.scopes, "bands": self.bands, "domains": self.domains}
        parts: dict[str, Any] = {name: value for name, value in given.items() if value}
        if self.mask:
            parts["mask"] = decode_image(self.mask, "mask")
        return AdapterWeight(self.weight * factor, start=self.start, end=self.end, **parts)


def encode_image(image: Image.Image) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return DATA + base64.b64encode(buffer.getvalue()).decode()


def called_up(prompt: str, dials: Mapping[str, Dial]) -> tuple[str, dict[str, tuple[Dial, float]]]:
    """A prompt without its tags; of each adapter that they or `dials` name its dial, and what its tag multiplies."""
    words, tags = parse_prompt(prompt, None)
    return words, {name: (dials.get(name, Dial()), tags.get(name, 1.0)) for name in {**dials, **tags}}


def decode_image(text: str, name: str) -> Image.Image:
    """The picture of a data URI. Raises ValueError for what is no PNG, or too large a one."""
    try:
        if not text.startswith(DATA):
            raise ValueError(f"it must begin with {DATA}, got {text[:40]!r}")
        data = base64.b64decode(text.removeprefix(DATA), validate=True)
        return open_png(io.BytesIO(data))
    except UnidentifiedImageError:  # it names an object in memory
        raise ValueError(f"{name} is no PNG: its data begin with {data[:8]!r}; encode a PNG file in base64") from None
    except (ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"{name} is no PNG: {error}") from None


def open_png(file: Any) -> Image.Image:
    """A PNG, read whole. Raises ValueError, OSError, SyntaxError for what is none, or too large."""
    image = Image.open(file, formats=("PNG",))
    if max(image.size) > LARGEST:
        raise ValueError(f"{image.width} × {image.height} pixels; no side may exceed {LARGEST}")
    image.load()
    return image
