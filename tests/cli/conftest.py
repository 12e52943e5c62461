"""The command line in an empty folder, and adapter files for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_adapters import FAMILIES
from diffusion_adapters.cli import common, main
from tests.command_line import Run, trained
from tests.hosts import pipeline_folder


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in an empty folder, with the tiny pipeline as the embedded base: exit code, stdout, stderr."""
    monkeypatch.setattr(common, "POCKET", pipeline_folder())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {family: trained(folder / f"{family}.safetensors", family) for family in FAMILIES}
    return made | {"other": trained(folder / "other.safetensors", seed=9)}
