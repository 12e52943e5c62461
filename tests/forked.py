"""Processes forked from this one, which has imported everything: runs that can be killed, and runs of two processes."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState


def start(function: Callable[[], object], said: Path, environment: dict[str, str] | None = None) -> int:
    """Fork a process that calls `function`, writes what it says to `said`, and exits with 0 or 1; its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.update({"ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}, **environment or {})
        AcceleratorState._reset_state(reset_partial_state=True)
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(function: Callable[[], object], said: Path, processes: int = 1) -> None:
    """Call `function` in so many processes that know of each other, as `accelerate launch` does; all must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    logs = [said.with_name(f"{said.name}-{rank}") for rank in range(processes)]
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes))
    alone = processes == 1
    children = [start(function, log, {} if alone else world | rank) for log, rank in zip(logs, ranks, strict=True)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * processes, "\n".join(log.read_text() for log in logs)


def wait(child: int, seconds: float) -> int | None:
    """The exit code of a process, or None if it still runs after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def save(values: object, path: Path) -> None:
    """Keep what a process found for the one that started it."""
    torch.save(values, path)
