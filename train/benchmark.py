"""Measure adapters against the bare base, PEFT and LyCORIS, in one process.

python train/benchmark.py --inference  operations, time and memory of a forward with 1 to 8 adapters
python train/benchmark.py --speed    time, memory and launches of a training step; --speed --help lists its options
python train/benchmark.py --quality  what each family learns, at its own best learning rate, on the same subjects
python train/benchmark.py --separation  does the ruler tell base, under-trained, good, over-fitted and wrong apart?
python train/benchmark.py --regions  two subjects in one picture, each trained on its own: do masks keep them apart?
python train/benchmark.py --hybrid   several domains in one picture: hybrids beside sums, merges and other trainings
python train/benchmark.py --gallery  pictures of blending
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence

from diffusion_adapters.options import argument_parser

BENCHMARKS = tuple(re.findall(r"^python train/benchmark.py --(\w+) ", __doc__, re.MULTILINE))
"""Those above, each a file of `train/benchmarks/`."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the measurement that was asked for; the other flags are its own."""
    parser = argument_parser(__doc__, add_help=False)
    kinds = parser.add_mutually_exclusive_group(required=True)
    for name in BENCHMARKS:
        kinds.add_argument(f"--{name}", action="store_const", const=name, dest="benchmark")
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not set(arguments) & {f"--{name}" for name in BENCHMARKS}:
        parser.print_help()
        raise SystemExit(0 if "--help" in arguments else 2)
    chosen, rest = parser.parse_known_args(arguments)
    return importlib.import_module(f"train.benchmarks.{chosen.benchmark}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
