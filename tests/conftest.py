"""Every test runs on one thread, without the network, and from one seed."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_ANALYTICS_ENABLED="0",
    OMP_NUM_THREADS="1",  # of the processes that tests start as well: another number of threads rounds otherwise
)  # fmt: skip

import pytest
import torch

from tests.browser import app_url, browser, hold, library_folder, open_page, runs_folder, visitor  # noqa: F401  # fixtures

torch.set_num_threads(1)  # several threads spin at barriers on a shared machine: slower, not faster
pytest.register_assert_rewrite(
    "tests.command_line", "tests.conformance", "tests.exported", "tests.files", "tests.probes"
)

_LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "")


def _refuse(host: Any) -> None:
    if (host.decode() if isinstance(host, bytes) else host or "") not in _LOCAL:
        raise OSError(f"a test asked for the network: {host!r}")


@pytest.fixture(scope="session", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where gradio keeps files: it reads the variable at each upload, so all apps of a process must have one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def local_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            _refuse(address[0])
        connect(self, address)

    def local_resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse(host)
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", local_connect)
    monkeypatch.setattr(socket, "getaddrinfo", local_resolve)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny stock pipeline by its name, written once; tests leave it as it is."""
    from tests.pipelines import save

    return functools.cache(lambda name: save(name, tmp_path_factory.mktemp("stock") / name))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before, nothing left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def same_backend_afterwards() -> Iterator[None]:
    """`set_attention_backend` is for the whole process: other tests compare bitwise with fresh ones."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
        yield


@pytest.fixture
def model() -> torch.nn.Module:
    """A tiny transformer without adapters."""
    from tests.hosts import HOST, build

    return build(HOST)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
