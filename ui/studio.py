"""The pipeline behind a lock: each picture brings its own adapters and weights, so that nobody gets another's."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from diffusion_adapters import AdapterInfo, delete_adapters, list_adapters, load_adapter, set_adapters
from diffusion_adapters.options import Options, option
from ui.library import Entry

KEEP = 32
"""Adapters kept in memory beside those in use."""
Mix = Sequence[tuple[Entry, float]]
"""The adapters of a picture with their weights; none is the base."""


class StoppedError(Exception):
    """The user pressed Stop."""


class StopFlag:
    """One session's wish to stop. Copying it, as a page does for each session, gives a new one."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.set, self.clear = self._event.set, self._event.clear

    def __deepcopy__(self, memo: dict[int, Any]) -> StopFlag:
        return StopFlag()

    def check(self) -> None:
        """Raise StoppedError if the flag is up."""
        if self._event.is_set():
            raise StoppedError


@dataclass(frozen=True, kw_only=True)
class Request(Options):
    """What a user asks for. Its bounds are those of the controls and of the API."""

    prompt: str = option("", "What to draw. An adapter's trigger calls up what it was taught.")
    negative_prompt: str = option("", "What to keep out of the picture.")
    seed: int = option(0, "The same seed with the same settings repeats the picture.", ge=0, le=2**32 - 1)
    steps: int = option(20, "Denoising steps: more is slower and finer.", ge=1, le=100)
    guidance_scale: float = option(2.5, "How strongly the picture follows the prompt.", ge=0, le=20)
    num_images: int = option(1, "Each has the next seed.", ge=1, le=8)

    @classmethod
    def from_page(cls, values: Mapping[str, Any]) -> Request:
        """From the values of controls, which know no difference between 20 and 20.0. Raises ValueError, TypeError."""
        kinds = cls.kinds()
        whole = {k: int(v) for k, v in values.items() if kinds[k][0] is int and isinstance(v, float) and v == int(v)}
        return cls.from_mapping({**values, **whole})

    @classmethod
    def control(cls, name: str) -> dict[str, Any]:
        """Keyword arguments of the control of field `name`: default, help and, of a number, its bounds."""
        field = cls.__dataclass_fields__[name]
        return {"value": field.default, "info": field.metadata["help"]}

    @classmethod
    def bounds(cls, name: str) -> tuple[float, float]:
        """Lowest and highest value of field `name`."""
        limits = cls.__dataclass_fields__[name].metadata["bounds"]
        return limits["ge"], limits["le"]


class Studio:
    """A pipeline, the adapters loaded onto it, and the lock without which nobody touches either."""

    def __init__(self, pipe: Any, title: str = "", guidance_scale: float | None = None) -> None:
        """`guidance_scale`: what to begin with; the pipeline's own default if None."""
        self.pipe = pipe
        self.title = title or type(pipe).__name__
        self.accepts = inspect.signature(pipe.__call__).parameters
        own = self.accepts["guidance_scale"].default if "guidance_scale" in self.accepts else None
        self.guidance_scale = guidance_scale if guidance_scale is not None else own
        self.lock = threading.Lock()
        self.loaded: dict[str, Entry] = {}
        if hasattr(pipe, "set_progress_bar_config"):
            pipe.set_progress_bar_config(disable=True)

    def examine(self, entry: Entry) -> AdapterInfo:
        """Load a file to see whether it fits this base. Raises what `load_adapter` raises."""
        with self.lock:
            self._load([entry])
            return list_adapters(self.pipe)[entry.name]

    def make(
        self,
        request: Request,
        mix: Mix,
        *,
        compare: bool = False,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[tuple[Image.Image | None, Image.Image]]:
        """Yield (picture of the base, picture) for each seed; the first is None unless `compare` and there is a mix.

        `on_step(done, total)` is called after each denoising step; what it raises ends the work at once.
        """
        compare = compare and bool(mix)
        done, total = 0, request.steps * request.num_images * (2 if compare else 1)

        def step() -> None:
            nonlocal done
            done += 1
            on_step(min(done, total), total)

        for number in range(request.num_images):
            base = self._draw(request, number, [], step) if compare else None
            yield base, self._draw(request, number, mix, step)

    def _draw(self, request: Request, number: int, mix: Mix, step: Callable[[], None]) -> Image.Image:
        """One picture. The lock is held for this long and never across a yield."""

        def after_step(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            step()
            return values

        settings: dict[str, Any] = {"guidance_scale": request.guidance_scale, "callback_on_step_end": after_step}
        if request.negative_prompt:
            settings["negative_prompt"] = request.negative_prompt
        settings = {name: value for name, value in settings.items() if name in self.accepts}
        with self.lock:
            self._load([entry for entry, _ in mix])
            set_adapters(self.pipe, [entry.name for entry, _ in mix], [weight for _, weight in mix])
            generator = torch.Generator("cpu").manual_seed(request.seed + number)
            made = self.pipe(request.prompt, num_inference_steps=request.steps, generator=generator, **settings)
        return made.images[0]

    def _load(self, entries: Sequence[Entry]) -> None:
        """Have `entries` on the pipeline, as their files were when the library saw them. Leaves no adapter active."""
        for entry in entries:
            old = self.loaded.pop(entry.name, None)
            if old is not None and (old.path, old.stamp) != (entry.path, entry.stamp):
                delete_adapters(self.pipe, entry.name)
                old = None
            if old is None:
                load_adapter(self.pipe, entry.path, entry.name)
                set_adapters(self.pipe, [])
            self.loaded[entry.name] = entry  # the last used is the last in the row
        for name in list(self.loaded)[: -max(KEEP, len(entries))]:
            delete_adapters(self.pipe, name)
            del self.loaded[name]
