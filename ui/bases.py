"""The models that draw: which there are, what each takes, and the one that is in memory with its adapters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion_adapters import AdapterSet, AdapterShelf, delete_adapters
from diffusion_adapters.attach import find_denoisers
from diffusion_adapters.cli.common import POCKET, POCKET_GUIDANCE, load_base
from diffusion_adapters.skeleton import Skeleton, skeleton
from ui.library import Entry
from ui.relatives import from_picture, samplers
from ui.request import LARGEST, Request, seed_of

KEEP = 32
"""Adapters kept in memory beside those in use."""
MANY = 8
"""Blocks of a list that still have a control each."""


@dataclass(frozen=True)
class Base:
    """A pipeline of diffusers by the name that users see, which is no path of this computer."""

    name: str
    source: str | None
    """Folder or Hub id; None is the embedded base."""

    @classmethod
    def of(cls, source: str | None) -> Base:
        """From what a user gives. Raises FileNotFoundError for what is neither a folder nor a Hub id."""
        if source is None:
            return cls("pocket", None)
        folder = Path(source).expanduser()
        if folder.is_dir():
            return cls(folder.resolve().name, str(folder))
        if source.count("/") != 1 or source.startswith((".", "/", "~")):
            raise FileNotFoundError(f"base {folder.name}: no such folder, and not a Hub id like 'owner/name'")
        return cls(source, source)

    @cached_property
    def skeleton(self) -> Skeleton:
        """Its models without their numbers, to see whether an adapter fits. Only configuration files are read."""
        return skeleton(self.source or POCKET)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The blocks of its denoisers that adapters change, as scopes of a weight; of many alike the whole list."""
        found: dict[str, None] = {}
        for denoiser in find_denoisers(self.skeleton).values():
            heads = [path.split(".")[:2] for path in AdapterSet(denoiser).projections()]
            long = {name for name, _ in heads if len({part for other, part in heads if other == name}) > MANY}
            for name, part in heads:
                found[f"{name}.{part}" if part.isdecimal() and name not in long else name] = None
        return tuple(found)


@dataclass(frozen=True)
class Traits:
    """What a base takes: the bounds of its controls."""

    size: tuple[int, int] = (0, 0)
    """Width and height that it draws unless told otherwise."""
    multiple: int = 8
    samplers: tuple[str, ...] = ()
    """The first is its own."""
    guidance: float | None = None
    """Guidance to begin with; None if it takes none."""
    negative: bool = False
    image: bool = False
    """Whether it draws from a picture."""
    quick: bool = False
    """Whether a preview takes moments: a small base, or an accelerator."""


@dataclass(eq=False)
class LoadedBase:
    """A base in memory. Whoever touches it holds the studio's lock."""

    base: Base
    pipe: Any
    loaded: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)
        self.scheduler = self.pipe.scheduler
        self.shelf = AdapterShelf(self.pipe, {}, count=KEEP)

    @classmethod
    def load(cls, base: Base) -> LoadedBase:
        """Raises what `from_pretrained` raises."""
        return cls(base, load_base(base.source))

    @property
    def accelerated(self) -> bool:
        """Whether it is on another device than the CPU."""
        return self.pipe.device.type != "cpu"

    @cached_property
    def from_image(self) -> Any:
        """The pipeline that draws from a picture, of the same parts; None if there is none."""
        pipe = from_picture(self.pipe)
        if pipe is not None:
            pipe.set_progress_bar_config(disable=True)
        return pipe

    @cached_property
    def samplers(self) -> dict[str, type]:
        """Schedulers by name that can take the place of the base's own, which is the first."""
        return samplers(self.scheduler)

    @cached_property
    def traits(self) -> Traits:
        """What the base takes."""
        accepts = inspect.signature(self.pipe.__call__).parameters
        own = accepts["guidance_scale"].default if "guidance_scale" in accepts else None
        config = next(part.config for name in ("unet", "transformer") if (part := getattr(self.pipe, name, None)))
        factor = getattr(self.pipe, "vae_scale_factor", 8)
        side = getattr(self.pipe, "default_sample_size", None) or config.get("sample_size") or 128
        height, width = (side, side) if isinstance(side, int) else side
        halvings = len(config.get("block_out_channels") or [0, 0]) - 1
        return Traits(
            size=(width * factor, height * factor), multiple=max(8, factor * 2**halvings),
            samplers=tuple(self.samplers), guidance=POCKET_GUIDANCE if self.base.source is None else own,
            negative="negative_prompt" in accepts, image=self.from_image is not None,
            quick=self.base.source is None or self.accelerated,
        )  # fmt: skip

    def check(self, request: Request) -> None:
        """Raise ValueError for what this base cannot do."""
        traits = self.traits
        if request.sampler and request.sampler not in traits.samplers:
            raise ValueError(f"sampler {request.sampler!r} is none of {', '.join(traits.samplers)}")
        for name in ("width", "height"):
            value = getattr(request, name)
            if value % traits.multiple:
                raise ValueError(f"{name} must be a multiple of {traits.multiple} for this base, got {value}")
        (width, height), (w, h) = self.size(request), traits.size
        if width * height > 16 * w * h:
            raise ValueError(f"{width} × {height} is more than 16 times the {w} × {h} that this base draws by itself")

    def draw(
        self,
        request: Request,
        number: int,
        mix: Mapping[Entry, Any],
        image: Image.Image | None,
        on_step: Callable[[int, int], None],
    ) -> Image.Image:
        """One picture. `mix`: adapter and its weight. `on_step(done, total)`: what it raises ends the work."""
        pipe = self.pipe if image is None else self.from_image
        kind: Any = self.samplers[request.sampler or next(iter(self.samplers))]
        # PNDM with its Runge-Kutta steps needs more steps than asked for; nobody means that by the name
        extra = {} if kind is type(self.scheduler) else {"skip_prk_steps": True}
        scheduler = kind.from_config({**self.scheduler.config, **extra})
        pipe.scheduler = self.pipe.scheduler = scheduler
        accepts = inspect.signature(pipe.__call__).parameters

        def after_step(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            on_step(index + 1, pipe.num_timesteps)
            if index + 1 == pipe.num_timesteps and not bool(torch.isfinite(values["latents"]).all()):
                said = f"{request.sampler or 'the sampler'} in {request.steps} steps"
                raise ValueError(f"the picture is no number any more after {said}; take other steps or a sampler")
            return values

        settings: dict[str, Any] = {"guidance_scale": request.guidance_scale, "callback_on_step_end": after_step}
        if request.negative_prompt:
            settings["negative_prompt"] = request.negative_prompt
        width, height = self.size(request)
        if image is not None:
            settings |= {"image": image.convert("RGB").resize((width, height)), "strength": request.strength}
        settings |= {"width": width, "height": height, "num_inference_steps": request.steps}
        settings = {name: value for name, value in settings.items() if name in accepts}
        self.adapt(mix)
        generator = torch.Generator("cpu").manual_seed(seed_of(request, number))
        return pipe(request.prompt, generator=generator, **settings).images[0]

    def size(self, request: Request) -> tuple[int, int]:
        """Width and height of the pictures of a request."""
        width, height = self.traits.size
        return min(request.width or width, LARGEST), min(request.height or height, LARGEST)

    def adapt(self, mix: Mapping[Entry, Any]) -> None:
        """Make the adapters of `mix` act, as their files were when the library saw them, and no others."""
        for entry in mix:
            old = self.loaded.get(entry.name)
            changed = old is not None and (old.path, old.stamp) != (entry.path, entry.stamp)
            if changed and entry.name in self.shelf.loaded:
                self.shelf.set_adapters([])
                delete_adapters(self.pipe, entry.name)
            self.loaded[entry.name] = entry
            self.shelf.files[entry.name] = entry.path
        self.shelf.set_adapters([entry.name for entry in mix], list(mix.values()))
