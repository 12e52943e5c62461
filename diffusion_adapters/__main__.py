"""Personalize diffusers pipelines with adapters: make pictures, look into files, export them, list the families."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .adapter import FAMILIES
from .options import argument_parser

POCKET = Path(__file__).resolve().parent.parent / "pipelines" / "pocket"
POCKET_GUIDANCE = 2.0
"""Guidance at which the embedded base is sampled; a pipeline's default of 7.5 oversaturates it."""


def parse_adapter(text: str) -> tuple[Path, float]:
    """`FILE[:WEIGHT]` -> (path, weight). Raises ValueError for a weight that is no number."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists() or len(path) == 1:  # a drive letter is no weight
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        raise ValueError(
            f"--adapter {text}: the weight {weight!r} is not a number; write FILE or FILE:WEIGHT"
        ) from None


def count(text: str) -> int:
    """A whole number of at least 1, from a flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def load_base(base: str | None) -> Any:
    """The pipeline at a path or Hub id, on the accelerator if there is one; the embedded base if None."""
    import torch
    from diffusers import DiffusionPipeline

    if base is None and not (POCKET / "model_index.json").exists():
        raise FileNotFoundError("the embedded base lies in the clone of the repository; give --base a pipeline")
    source = base or str(POCKET)
    if not Path(source).exists() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"--base {source}: no such folder, and not a Hub id like 'owner/name'")
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = torch.float32 if base is None or device == "cpu" else torch.float16
    return DiffusionPipeline.from_pretrained(source, torch_dtype=dtype).to(device)


def generate(args: argparse.Namespace) -> None:
    """Make pictures with any number of adapters, each times its weight."""
    import torch
    from PIL import Image

    from . import load_adapter, set_adapters
    from .file import read_adapter

    chosen = [parse_adapter(text) for text in args.adapter]
    for path, _ in chosen:
        read_adapter(path)  # before the base is loaded, which can take minutes
    output = Path(args.output)
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; give the name of a picture")
    if output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--output {output}: unknown kind of picture {output.suffix!r}; end the name in .png")
    pipe = load_base(args.base)
    names = [load_adapter(pipe, path, f"adapter_{i}", adapter_weight=weight) for i, (path, weight) in enumerate(chosen)]
    if names:
        set_adapters(pipe, names, [weight for _, weight in chosen])
    guidance_scale = POCKET_GUIDANCE if args.guidance_scale is None and args.base is None else args.guidance_scale
    settings = {"guidance_scale": guidance_scale, "negative_prompt": args.negative_prompt}
    settings = {name: value for name, value in settings.items() if value is not None}
    output.parent.mkdir(parents=True, exist_ok=True)
    for i in range(args.num_images):
        generator = torch.Generator("cpu").manual_seed(args.seed + i)
        image = pipe(args.prompt, num_inference_steps=args.steps, generator=generator, **settings).images[0]
        path = output if args.num_images == 1 else output.with_stem(f"{output.stem}_{i}")
        image.save(path)
        print(path)


def inspect(args: argparse.Namespace) -> None:
    """Tell what an adapter file is: family, options, base, trigger prompt, training settings, size."""
    from .file import read_adapter

    file = read_adapter(args.file)
    info = file.info
    values = sum(t.numel() for places in file.tensors.values() for own in places.values() for t in own.values())
    values += sum(t.numel() for part in file.text.values() for t in part.tensors.values())
    rows = {
        "file": f"{file.path} ({file.path.stat().st_size / 1024:.1f} KiB, {values:,} numbers)",
        "family": f"{info.family}: {_title(info.family)}",
        "options": _pairs(info.config.as_dict()),
        "targets": ", ".join(info.target_modules) if info.target_modules else "all attention projections",
        "trigger": info.trigger or "-",
        "training": _pairs(dict(info.training)) or "-",
        "format": json.loads(file.metadata["diffusion-adapters"])["created_by"],
    }
    for component, places in file.tensors.items():
        base = info.base[component]
        rows[component] = f"{base['class']} {base['name']} [{base['fingerprint']}], {len(places)} projections"
    for component, part in file.text.items():
        rows[component] = f"LoRA of rank {part.rank} on {', '.join(part.target_modules)}"
    for name, text in rows.items():
        print(f"{name:<14} {text}")


def export(args: argparse.Namespace) -> None:
    """Write an adapter as a plain LoRA file for any program that reads diffusers LoRA files."""
    import torch

    from . import export_lora, load_adapter
    from .file import read_adapter

    read_adapter(args.file)
    pipe = load_base(args.base)
    name = load_adapter(pipe, args.file)
    output = args.output or str(Path(args.file).with_name("pytorch_lora_weights.safetensors"))
    report = export_lora(pipe, name, output, rank=args.rank, dtype=getattr(torch, args.dtype))
    if report.exact:
        print(f"{report.path}: rank {report.rank}, exact")
    else:
        print(
            f"{report.path}: rank {report.rank}, relative error {report.relative_error:.3g} "
            f"(worst {report.worst_error:.3g} at {report.worst_place}); a larger --rank lowers it"
        )


def families(args: argparse.Namespace) -> None:
    """List the adapter families with their options."""
    for name in FAMILIES:
        aliases = ", ".join(FAMILIES.aliases(name))
        print(f"{name}{f' (alias {aliases})' if aliases else ''}: {_title(name)}")
        for field in dataclasses.fields(FAMILIES[name].Config):
            print(f"    {field.name:<18} {field.metadata['help']} (default: {field.default})")


def _title(family: str) -> str:
    text = sys.modules[FAMILIES[family].__module__].__doc__ or ""
    return text.strip().splitlines()[0]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argument_parser(__doc__, prog="python -m diffusion_adapters")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").strip()
        made = commands.add_parser(
            run.__name__, help=text[0].lower() + text[1:].rstrip("."), description=text, allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made

    add = command(generate).add_argument
    add("--prompt", required=True, help="what to draw")
    add("--adapter", action="append", default=[], metavar="FILE[:WEIGHT]", help="adapter file; repeat to blend several")
    add("--base", help="folder or Hub id of a diffusers pipeline (default: the embedded base)")
    add("--output", default="image.png", help="picture to write; several are numbered (default: image.png)")
    add("--num_images", type=count, default=1, help="pictures, with seeds seed, seed + 1, … (default: 1)")
    add("--seed", type=int, default=0, help="seed of the first picture (default: 0)")
    add("--steps", type=count, default=20, help="denoising steps (default: 20)")
    add(
        "--guidance_scale",
        type=float,
        help="strength of the prompt (default: 2 for the embedded base, else the pipeline's)",
    )
    add("--negative_prompt", help="what not to draw")
    command(inspect).add_argument("file", help="adapter file")
    add = command(export).add_argument
    add("file", help="adapter file")
    add("--base", help="pipeline that the adapter was trained on (default: the embedded base)")
    add("--output", help="LoRA file to write (default: pytorch_lora_weights.safetensors beside the adapter)")
    add("--rank", type=count, default=64, help="rank kept of what is not low rank (default: 64)")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="default: float32")
    command(families)
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it went well, 2 with one line on stderr if not."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:
        return 0
    except (ValueError, TypeError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        remedy = "; free some space and try again" if error.errno == errno.ENOSPC else ""
        print(f"error: {error}{remedy}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
