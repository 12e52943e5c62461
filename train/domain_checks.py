"""What a run on several domains is given, looked at before anything is drawn or written; errors name the flag."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from diffusion_adapters import inspect_adapter
from train.bases import BaseInfo
from train.features import DENOISER
from train.ruler.encoders import read_processor


@contextlib.contextmanager
def named(flag: str, said: str, remedy: str = "") -> Iterator[None]:
    """Errors inside name `flag`, in place of what they have `said`, unless they name another, and the remedy."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = str(error).replace(said, flag, 1)
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind((text if "--" in text else f"{flag}: {text}") + (remedy and f"; {remedy}")) from None


def domain_named(name: str, path: Path) -> contextlib.AbstractContextManager[None]:
    """Errors about pictures name the flag of their domain."""
    return named(f"--domain {name}={path}", f"--instance_data_dir {path}")


def check_parts(parts: Mapping[str, Path], info: BaseInfo | None = None) -> None:
    """Raise ValueError or FileNotFoundError for a file that is no adapter to compose, or does not fit a base.

    Nothing is loaded: a base is its denoiser without numbers.
    """
    base = info and info.denoiser()
    same: dict[Path, str] = {}
    remedy = "give the file of an adapter that was trained on this base, such as train/dreambooth.py leaves"
    for name, file in parts.items():
        if (other := same.setdefault(file.resolve(), name)) != name:
            raise ValueError(
                f"--part {name}={file}: the same file as of {other}; give each domain an adapter of its own"
            )
        with named(f"--part {name}={file}", str(file), remedy):
            if not file.exists():
                raise FileNotFoundError(f"{file}: no such file")
            found = inspect_adapter(file, base)
            if found.domains:
                raise ValueError(f"{file}: a hybrid is no part of another")
            if text := [part for part in (*found.layers, *found.tokens) if part.startswith("text_encoder")]:
                raise ValueError(f"{file}: it also changes {', '.join(dict.fromkeys(text))}, which has no dial")
            if found.fits is False:
                raise ValueError(f"{file}: {found.verdict}")
            if found.misshapen:
                raise ValueError(f"{file}: {found.misshapen[0]}")


def check_encoders(names: Iterable[str]) -> None:
    """Raise ValueError or FileNotFoundError for the path of what is no vision model; its numbers are not read."""
    for name in names:
        if name != DENOISER:
            with named(f"--encoder {name}", f"encoder {name}"):
                read_processor(name)
