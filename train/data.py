"""From a folder of image files to what the denoiser is trained on: checked pictures, captions, cached latents."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_adapters.options import Options, option
from train.images import open_rgb, variants

if TYPE_CHECKING:
    from train.bases import Base

SAMPLE_SUBJECT = Path(__file__).parent / "sample_subject"
ENCODE_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    title: ClassVar[str] = "data"
    instance_data_dir: Path | None = option(  # noqa: RUF009
        None, "folder of pictures of the subject (default: the bundled sample subject)"
    )
    instance_prompt: str = option(
        "a photo of sks creature",
        "what the pictures show, with a rare word for the subject; NAME.txt beside NAME.png overrides it",
    )
    resolution: int | None = option(None, "side of the training pictures in pixels (default: the base's own)", ge=8)
    center_crop: bool = option(False, "always train on the middle of a picture that is not square")
    random_flip: bool = option(False, "also train on mirrored pictures")
    cache_variants: int = option(4, "crops and flips kept of each picture", ge=1)


@dataclass(frozen=True)
class Example:
    """One file: its squares (one or several variants of the same picture), and its prompt."""

    name: str
    images: tuple[Image.Image, ...]
    prompt: str
    size: tuple[int, int]


@dataclass
class Folder:
    """What a folder holds: pictures to train on, and files that are not used, each with the reason."""

    path: Path
    resolution: int
    examples: list[Example] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def report(self) -> Iterator[str]:
        """Lines that say what is used and what is not."""
        sidecars = len({e.name for e in self.examples if (self.path / e.name).with_suffix(".txt").is_file()})
        own = f", {sidecars} with a caption of their own" if sidecars else ""
        pictures = "picture" if len(self.examples) == 1 else "pictures"
        yield f"{len(self.examples)} {pictures} at {self.resolution} x {self.resolution} pixels{own}"
        small = [e for e in self.examples if min(e.size) < self.resolution]
        for example in small[:10]:
            yield f"  enlarged {example.name}: {example.size[0]} x {example.size[1]}"
        for name, reason in self.refused.items():
            yield f"  not used {name}: {reason}"


def list_folder(options: DataOptions) -> list[Path]:
    """The files that may be pictures. Raises FileNotFoundError or ValueError if there are none."""
    path = options.instance_data_dir or SAMPLE_SUBJECT
    if not path.exists():
        raise FileNotFoundError(f"--instance_data_dir {path}: no such folder")
    if not path.is_dir():
        raise ValueError(f"--instance_data_dir {path} is a file; give the folder that holds the pictures")
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ValueError(f"--instance_data_dir {path}: the folder has no files (subfolders are not searched)")
    stems = {file.stem for file in files if file.suffix.lower() != ".txt"}
    return [file for file in files if file.suffix.lower() != ".txt" or file.stem not in stems]


def read_folder(options: DataOptions, resolution: int, seed: int) -> Folder:
    """Check every file of the folder. Raises ValueError if none is a picture."""
    files = list_folder(options)
    folder = Folder(files[0].parent, resolution)
    for file in files:
        try:
            picture = open_rgb(file, resolution)
            settings = {"center_crop": options.center_crop, "random_flip": options.random_flip, "seed": seed}
            squares = variants(picture, resolution, options.cache_variants, **settings)
            folder.examples.append(Example(file.name, tuple(squares), _caption(file, options), picture.size))
        except (ValueError, OSError) as error:
            folder.refused[file.name] = str(error)
    if not folder.examples:
        reasons = [f"{name}: {reason}" for name, reason in folder.refused.items()]
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise ValueError(f"--instance_data_dir {folder.path}: no picture can be read ({'; '.join(reasons[:5])}{more})")
    return folder


def _caption(file: Path, options: DataOptions) -> str:
    sidecar = file.with_suffix(".txt")
    text = sidecar.read_text(encoding="utf-8-sig", errors="strict").strip() if sidecar.is_file() else ""
    return " ".join(text.split()) or options.instance_prompt


def row_seed(seed: int, number: int) -> int:
    """Seed of everything drawn for the `number`-th training sample of a run; it depends on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest(), "little")


def spread(seed: int, number: int) -> float:
    """Where in [0, 1) the noise level of the `number`-th sample lies: steps of the golden ratio from a seeded start.

    Uniform as independent draws are, but any few samples in a row cover the range evenly: less noisy gradients.
    """
    return math.fmod(row_seed(seed, -1) / 2**32 + number * (math.sqrt(5) - 1) / 2, 1)


class CachedImages:
    """Latent moments and prompt embeddings of a folder, each encoded once: keyed by content, and by prompt."""

    def __init__(self, base: Base, examples: Sequence[Example]) -> None:
        self.examples = list(examples)
        images = {_content(image): image for example in self.examples for image in example.images}
        self.keys = [tuple(_content(image) for image in example.images) for example in self.examples]
        self.moments = _encoded(list(images), lambda keys: base.encode_image(_pixels([images[k] for k in keys])))
        prompts = list(dict.fromkeys(example.prompt for example in self.examples))
        self.prompts = {prompt: _cpu(base.encode_prompt([prompt])) for prompt in prompts}

    def __len__(self) -> int:
        return len(self.examples)

    def index(self, number: int, seed: int) -> int:
        """Which example is the `number`-th sample of a run: each once per epoch, in an order drawn for the epoch."""
        return _order(len(self), seed, number // len(self))[number % len(self)]

    def batch(self, numbers: Sequence[int], seed: int) -> dict[str, Any]:
        """The samples `numbers` of a run: moments (b, 2c, h, w), prompt embeddings (b, n, d), seeds (b,), spread (b,).

        A pure function: no loader, worker or earlier call changes what it returns.
        """
        seeds = [row_seed(seed, number) for number in numbers]
        chosen = [self.index(number, seed) for number in numbers]
        keys = [self.keys[i][s % len(self.keys[i])] for i, s in zip(chosen, seeds, strict=True)]
        rows = [self.prompts[self.examples[i].prompt] for i in chosen]
        embeds = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        drawn = {"seeds": torch.tensor(seeds), "spread": torch.tensor([spread(seed, number) for number in numbers])}
        return {"moments": torch.stack([self.moments[k] for k in keys]), **drawn, **embeds}

    def names(self, numbers: Sequence[int], seed: int) -> list[str]:
        """File names of the samples `numbers`, for messages."""
        return [self.examples[self.index(number, seed)].name for number in numbers]


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(row_seed(seed, -2 - epoch))
    return torch.randperm(count, generator=generator).tolist()


def _content(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """(b, 3, h, w) in [-1, 1]."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def _encoded(keys: list[str], encode: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for start in range(0, len(keys), ENCODE_AT_ONCE):
        part = keys[start : start + ENCODE_AT_ONCE]
        found.update(zip(part, encode(part).float().cpu(), strict=True))
    return found


def _cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in values.items()}
