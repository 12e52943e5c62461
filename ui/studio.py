"""The worker that makes all pictures, one at a time: each brings its base, adapters and weights, and leaves nothing."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate.utils import memory
from PIL import Image

from diffusion_adapters.cli.common import best_device
from ui.bases import Base, LoadedBase, Traits
from ui.library import Entry, Library
from ui.recipe import Recipe
from ui.request import Dial, Request, called_up, seed_of

MAX_BASES = 16
TAKEN = "a training uses the device: pictures are drawn again when it has ended; to draw now, stop it in Train"
Pair = tuple[Image.Image | None, Image.Image]
"""What the base makes of the same seed, if asked for, and the picture."""


class StoppedError(Exception):
    """The user pressed Stop, or asked for something newer."""


class Turn:
    """One session's work of a kind. Taking a turn ends the one before, at its next denoising step.

    Copying it, as a page does for each session, gives a new one.
    """

    def __init__(self) -> None:
        self._number = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Turn:
        return Turn()

    def take(self) -> Callable[[], None]:
        """A function to be called at each step; it raises StoppedError once the turn is over."""
        self._number = number = self._number + 1

        def check() -> None:
            if self._number != number:
                raise StoppedError

        return check

    def end(self) -> None:
        """Stop what runs."""
        self._number += 1


class Studio:
    """The base in memory, and the lock without which nobody touches it."""

    def __init__(self, bases: Sequence[Base], library: Library, *, open_to_bases: bool = True) -> None:
        """`bases`: the first is loaded now. `open_to_bases`: whether users may name others."""
        self.bases = {base.name: base for base in bases}
        self.library = library
        self.open_to_bases = open_to_bases
        self.lock = threading.Lock()
        self.training: Callable[[], bool] = lambda: False
        """Whether a process trains now. An accelerator is left to it: memory that runs out would end it."""
        self._traits: dict[str, Traits] = {}
        self._loaded: LoadedBase | None = None
        self.traits()

    @property
    def first(self) -> str:
        """The name of the base that the app was opened with."""
        return next(iter(self.bases))

    def base(self, name: str = "") -> Base:
        """A base by name, the first if empty. Raises ValueError for one that is unknown."""
        name = name or self.first
        if name not in self.bases:
            raise ValueError(f"unknown base {name!r}; there are: {', '.join(self.bases)}")
        return self.bases[name]

    def add_base(self, source: str) -> Base:
        """Let users choose another base, a folder or a Hub id, once it has been loaded. Raises ValueError, OSError."""
        if source in self.bases:
            return self.bases[source]
        if not self.open_to_bases:
            raise ValueError(f"this app has the bases {', '.join(self.bases)} and takes no others")
        base = Base.of(source.strip())
        taken = self.bases.get(base.name)
        if taken is not None and taken.source != base.source:
            raise ValueError(f"there is another base called {base.name!r}; rename the folder")
        if taken is None and len(self.bases) >= MAX_BASES:
            raise ValueError(f"{MAX_BASES} bases are known, and no more are taken; open the app anew")
        self._traits[base.name] = self._use(base)
        self.bases.setdefault(base.name, base)
        return self.bases[base.name]

    def traits(self, name: str = "") -> Traits:
        """What a base takes; it is loaded to find out, once."""
        base = self.base(name)
        if base.name not in self._traits:
            self._traits[base.name] = self._use(base)
        return self._traits[base.name]

    def entries(self, weights: Mapping[str, Any], base: str = "") -> dict[Entry, Dial]:
        """The adapters of the library, and how each acts, for what names and weights say. Raises ValueError."""
        self.library.scan(self.base(base))
        return {self.library.find(name, self.base(base)): Dial.read(name, dial) for name, dial in weights.items()}

    def make(
        self,
        request: Request,
        weights: Mapping[str, Any],
        *,
        image: Image.Image | None = None,
        compare: bool = False,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Pair]:
        """Yield a `Pair` for each seed, each picture with its recipe in `info`.

        `weights`: adapter name -> number, `Dial` or mapping of its fields; tags in the prompt multiply them. `image`:
        what to draw from. `on_step(done, total)` is called after each denoising step; what it raises ends the work.
        Raises ValueError, TypeError for what cannot be, before anything is drawn.
        """
        base = self.base(request.base)
        request = replace(request, base=base.name)
        dials = {name: Dial.read(name, dial) for name, dial in weights.items()}
        prompt, used = called_up(request.prompt, dials)
        entries = self.entries({name: dial for name, (dial, _) in used.items()}, base.name)
        mix = {entry: dial.as_weight(used[entry.name][1]) for entry, dial in entries.items()}
        if image is not None and not self.traits(base.name).image:
            raise ValueError(f"{base.name} draws from no picture")
        compare = compare and bool(mix)
        turns, done = request.num_images * (2 if compare else 1), 0

        def draw(number: int, mix: Mapping[Entry, Any], dials: Mapping[str, Dial]) -> Image.Image:
            nonlocal done

            def step(index: int, count: int) -> None:
                on_step(done * count + index, turns * count)

            with self.lock:
                loaded = self._load(base)
                loaded.check(request)
                picture = loaded.draw(replace(request, prompt=prompt), number, mix, image, step)
                size = loaded.size(request)
            done += 1
            files = {entry.name: entry.digest for entry in mix}
            own = replace(
                request, seed=seed_of(request, number), num_images=1, prompt=request.prompt if mix else prompt
            )
            return Recipe(own, dials, files, image and image.convert("RGB").resize(size)).written(picture)

        for number in range(request.num_images):
            plain = draw(number, {}, {}) if compare else None
            yield plain, draw(number, mix, dials)

    @contextmanager
    def blend(self, weights: Mapping[str, Any], base: str = "") -> Iterator[Any]:
        """The pipeline with adapters of the library at work, nobody else's meanwhile. Raises ValueError."""
        entries = self.entries(weights, base)
        with self.lock:
            loaded = self._load(self.base(base))
            loaded.adapt({entry: dial.as_weight() for entry, dial in entries.items()})
            yield loaded.pipe

    def give_back(self) -> None:
        """Let go of a base that is not on the CPU, once nobody draws with it: its memory is wanted elsewhere."""
        with self.lock:
            if self._loaded is not None and self._loaded.accelerated:
                self._drop()

    def _use(self, base: Base) -> Traits:
        with self.lock:
            return self._load(base).traits

    def _load(self, base: Base) -> LoadedBase:
        """The base in memory, in place of the one before. The lock is held. Raises RuntimeError during a training."""
        if best_device() != "cpu" and self.training():
            self._drop()
            raise RuntimeError(TAKEN)
        if self._loaded is None or self._loaded.base != base:
            self._drop()  # there is room for one
            self._loaded = LoadedBase.load(base)
        return self._loaded

    def _drop(self) -> None:
        """Free the memory of the base, whose parts know each other. The lock is held."""
        if self._loaded is not None:
            self._loaded = None
            gc.unfreeze()  # what the start of the app put aside, so that it is looked through
            memory.clear_device_cache(garbage_collection=True)
