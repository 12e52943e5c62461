"""The command `generate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import COMMANDS, POCKET_GUIDANCE, Command, add_dials, count, load_blend


@COMMANDS.register("generate")
class Generate(Command):
    """Make pictures with any number of adapters, each times its weight."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--prompt", required=True, help="what to draw")
        blend = "adapter file; repeat to blend several"
        add("--adapter", action="append", default=[], metavar="FILE[:WEIGHT]", help=blend)
        add_dials(parser)
        add("--base", help="folder or Hub id of a diffusers pipeline (default: the embedded base)")
        add("--output", default="image.png", help="picture to write; several are numbered (default: image.png)")
        add("--num_images", type=count, default=1, help="pictures, with seeds seed, seed + 1, … (default: 1)")
        add("--seed", type=int, default=0, help="seed of the first picture (default: 0)")
        add("--steps", type=count, default=20, help="denoising steps (default: 20)")
        guidance = "strength of the prompt (default: 2 for the embedded base, else the pipeline's)"
        add("--guidance_scale", type=float, help=guidance)
        add("--negative_prompt", help="what not to draw")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        import torch
        from PIL import Image

        from .. import set_adapters

        output = Path(args.output)
        if output.is_dir():
            raise ValueError(f"--output {output} is a folder; give the name of a picture")
        if output.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"--output {output}: unknown kind of picture {output.suffix!r}; end the name in .png")
        pipe, weights = load_blend(args.base, args.adapter, args.domain)
        if weights:
            set_adapters(pipe, list(weights), list(weights.values()))
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
