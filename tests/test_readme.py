"""README.md is true: its code runs, its tables are what the code gives, CI runs its commands."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

import diffusion_adapters
from diffusion_adapters import FAMILIES
from diffusion_adapters.cli import main as command_line
from tests.readme import GENERATED, README, section
from train.dreambooth import main as dreambooth
from train.evaluate import main as evaluate

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CLIENT = re.findall(r"```py\n(.*?)```", TEXT, re.DOTALL)
"""Blocks that talk to the app."""
SHELL = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone in which the main job has run, for two steps."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("pipelines", "train"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert dreambooth(["--adapter", "wara", "--max_train_steps", "2"]) in (0, None)
    return folder


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_up_to_date(name: str) -> None:
    assert section(TEXT, name) == GENERATED[name](), "run `python -m tests.readme`"


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code: str, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setattr(FAMILIES, "_entries", dict(FAMILIES._entries))
    script = tmp_path / "block.py"
    script.write_text(code, encoding="utf-8")
    runpy.run_path(str(script))


def test_the_apps_clients_run(app_url: str, tmp_path: Path) -> None:
    (code,) = CLIENT
    script = tmp_path / "block.py"
    script.write_text(code.replace("http://127.0.0.1:7860", app_url), encoding="utf-8")
    assert len(runpy.run_path(str(script))["pictures"]) == 1


def test_shell_lines_run(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    lines = [line for line in SHELL if line.startswith("python -m diffusion_adapters ")]
    assert len(lines) == 5
    for line in lines:
        assert command_line(shlex.split(line)[3:]) == 0
    assert (clone / "image.png").exists()


def test_the_ruler_runs_as_written(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    (line,) = [line for line in SHELL if line.startswith("python train/evaluate.py ")]
    assert evaluate([*shlex.split(line)[2:], "--seeds", "1", "--num_inference_steps", "1"]) == 0
    assert (clone / "evaluation" / "report.png").exists()


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, check = (line for line in SHELL if line.startswith("pip install "))
    assert re.findall(r"^run '(.*)'$", script, re.MULTILINE) == [install, check]
    assert "accelerate launch train/dreambooth.py --adapter wara" in install
    assert "pytest" in check


def test_public_names_are_in_the_readme() -> None:
    verbs = [name for name in diffusion_adapters.__all__ if name[0].islower()]
    assert [name for name in verbs if name not in TEXT] == []
