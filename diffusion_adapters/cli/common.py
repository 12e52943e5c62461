"""What commands have in common: their registry, the base that they load, and the flags of several of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry import Registry, nearest

if TYPE_CHECKING:
    from ..weight import AdapterWeight

POCKET = Path(__file__).resolve().parents[2] / "pipelines" / "pocket"
POCKET_GUIDANCE = 2.0
"""Guidance at which the embedded base is sampled; a pipeline's default of 7.5 oversaturates it."""


class Command:
    """One command; its docstring is its help, the first line its title."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Do it. Raises ValueError, TypeError, OSError or RuntimeError, whose text is the line that is shown."""
        raise NotImplementedError


COMMANDS: Registry[type[Command]] = Registry("command", "diffusion_adapters.cli")


def parse_adapter(text: str) -> tuple[Path, float]:
    """`FILE[:WEIGHT]` -> (path, weight). Raises ValueError for a weight that is no number."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists() or len(path) == 1:  # a drive letter is no weight
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        raise ValueError(f"{text}: the weight {weight!r} is not a number; write FILE or FILE:WEIGHT") from None


def parse_dials(texts: Sequence[str], known: Iterable[str]) -> dict[str, float]:
    """`DOMAIN=WEIGHT` texts -> domain -> weight. Raises ValueError for what is none or names no domain of `known`."""
    known, found = list(known), {}
    for text in texts:
        domain, _, weight = text.partition("=")
        try:
            value = float(weight)
        except ValueError:
            raise ValueError(f"--domain {text}: must be DOMAIN=WEIGHT with a number, such as night=0.6") from None
        if domain not in known:
            raise ValueError(f"--domain {text}: unknown domain {domain!r}, {nearest(domain, known)}")
        if domain in found:
            raise ValueError(f"--domain {text}: domain {domain!r} is named twice")
        found[domain] = value
    return found


def load_blend(
    base: str | None, texts: Sequence[str], dials: Sequence[str] = ()
) -> tuple[Any, dict[str, AdapterWeight]]:
    """The base with the adapters of `FILE[:WEIGHT]` texts, and their names and weights. Files are read before it.

    `dials`: `DOMAIN=WEIGHT` texts, for every hybrid that has such a domain.
    """
    from .. import AdapterWeight, load_adapter
    from ..doctor import inspect_adapter

    chosen = [parse_adapter(text) for text in texts]
    domains = [list(inspect_adapter(path).domains) for path, _ in chosen]  # loading the base can take minutes
    parsed = parse_dials(dials, dict.fromkeys(domain for own in domains for domain in own))
    pipe = load_base(base)
    stems = [path.stem.replace(".", "_") for path, _ in chosen]
    names = [stem if stems.count(stem) == 1 else f"{stem}_{i}" for i, stem in enumerate(stems)]
    weights = {}
    for name, (path, value), own in zip(names, chosen, domains, strict=True):
        weights[name] = AdapterWeight(value, domains={domain: parsed[domain] for domain in own if domain in parsed})
        load_adapter(pipe, path, name, adapter_weight=weights[name])
    return pipe, weights


def add_blend(parser: argparse.ArgumentParser) -> None:
    """Declare the files that `load_blend` takes, and the base."""
    parser.add_argument("file", nargs="+", metavar="FILE[:WEIGHT]", help="adapter file; several are blended")
    parser.add_argument("--base", help="pipeline that they were trained on (default: the embedded base)")
    add_dials(parser)


def add_dials(parser: argparse.ArgumentParser) -> None:
    """Declare the dials of hybrids that `load_blend` takes."""
    dial = "dial of one domain of a hybrid, 1 if not given; repeat for several"
    parser.add_argument("--domain", action="append", default=[], metavar="DOMAIN=WEIGHT", help=dial)


def count(text: str) -> int:
    """A whole number of at least 1, from a flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def best_device() -> str:
    """Where bases are loaded to: the accelerator if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load_base(base: str | None) -> Any:
    """The pipeline at a path or Hub id, on the accelerator if there is one; the embedded base if None.

    Raises ValueError for one whose numbers are no safetensors.
    """
    import torch
    from diffusers import DiffusionPipeline

    from ..safe import from_safetensors

    if base is None and not (POCKET / "model_index.json").exists():
        raise FileNotFoundError("the embedded base lies in the clone of the repository; give --base a pipeline")
    source = base or str(POCKET)
    if not Path(source).exists() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"--base {source}: no such folder, and not a Hub id like 'owner/name'")
    device = best_device()
    dtype = torch.float32 if base is None or device == "cpu" else torch.float16
    return from_safetensors(DiffusionPipeline, source, dtype=dtype).to(device)
