"""Hybrid domains: from a few pictures of each of several domains, and none of all at once, one adapter of them all.

    accelerate launch train/hybrid_domain.py

trains on the bundled domains and the embedded base: no network, no GPU, a few minutes on two CPU cores. Your own:

    accelerate launch train/hybrid_domain.py --domain sketch=my_sketches --domain night=my_nights --family loldu \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

Each domain gets a part and a dial: set_adapters(pipe, name, domain_weights={"sketch": 1.0, "night": 0.6}). With --part
NAME=FILE for each domain, adapters that are there already are composed: only how they are mixed is trained. It is
train/dreambooth.py --adapter hybrid, with all of its options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diffusion_adapters import FAMILIES
from train.dreambooth import train
from train.flags import HYBRID, read_flags
from train.launch import join_processes
from train.script import command


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    family = FAMILIES.canonical(read_flags(argv, "adapter").get("adapter", HYBRID))
    if family != HYBRID:
        raise ValueError(
            f"--adapter {family}: a hybrid is trained here; give --family {family} for its parts, or run "
            f"train/dreambooth.py --adapter {family} for one subject"
        )
    train(["--adapter", HYBRID, *argv], __doc__)


if __name__ == "__main__":
    join_processes()
    sys.exit(main())
