"""Several processes on the CPU, as `accelerate launch --cpu --num_processes 2` asks for.

On the CPU accelerate's launcher starts one process, whatever it is told, unless MPI starts the others. Without MPI that
one process turns into torch's own launcher, which accelerate uses for GPUs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from accelerate.commands.config import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where those who start processes say how many there are."""


def join_processes() -> None:
    """Start as many processes of this script as accelerate's launcher was asked for, in place of this one."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if not on_cpu or any(name in os.environ for name in COUNTS):
        return
    parent = psutil.Process().parent()
    command = missing(parent.cmdline() if parent is not None else [])
    if command:
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *command])


def missing(launcher: Sequence[str]) -> list[str]:
    """What to tell torch's launcher in place of the command line of accelerate's; nothing if one process is right."""
    name = re.compile(r"\baccelerate(-| |[/\\.]commands[/\\.])launch(\.py)?$")
    start = next((i for i in range(1, len(launcher)) if name.search(" ".join(launcher[:i]))), None)
    if start is None:
        return []
    asked, _ = launch_command_parser().parse_known_args(launcher[start:])
    if asked.mpirun_hostfile is not None or asked.no_python:
        return []
    kept = asked.config_file or (default_config_file if Path(default_config_file).is_file() and not asked.cpu else None)
    config = load_config_from_file(kept) if kept else None
    count = asked.num_processes or (config.num_processes if config else 1)
    machines = asked.num_machines or (config.num_machines if config else 1)
    if count <= 1:
        return []
    where = ["--standalone", "--local_addr", "127.0.0.1"]
    if machines > 1:
        rank = asked.machine_rank if asked.machine_rank is not None else getattr(config, "machine_rank", 0)
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        where = ["--nnodes", str(machines), "--node_rank", str(rank), "--master_addr", address, "--master_port", port]
    script = [*(["--module"] if asked.module else []), asked.training_script, *asked.training_script_args]
    return ["--nproc_per_node", str(count // machines), *where, *script]
