"""A script's exit codes, and the one line for an error that is no bug."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pytest

from diffusion_adapters import FAMILIES
from train.benchmark import BENCHMARKS
from train.benchmark import main as benchmark
from train.script import command


def script(body: Callable[[], int | None]) -> int:
    @command
    def main(argv: Sequence[str] | None = None) -> int | None:
        return body()

    return main([])


def fail(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_what_it_returns_is_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert [script(lambda: None), script(lambda: 0), script(lambda: 1)] == [0, 0, 1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        (lambda: FAMILIES.canonical("loar"), 2, "error: unknown"),
        (
            fail(FileNotFoundError(errno.ENOENT, "none", "cat.png")),
            2,
            "error: [Errno 2] none: 'cat.png'",
        ),
        (fail(OSError(errno.ENOSPC, "no space left")), 2, "error: no space left; free some space and try again"),
        (fail(KeyboardInterrupt()), 130, "error: interrupted"),
    ],
    ids=["value", "file", "disk", "interrupt"],
)
def test_a_mistake_is_one_line(
    body: Callable[[], None], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(body) == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_a_bug_is_raised() -> None:
    with pytest.raises(ValueError, match="of a test"):
        script(fail(ValueError("of a test")))
    with pytest.raises(KeyError):
        script(lambda: {}[0])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark([f"--{name}", "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: benchmark.py --{name} ")


def test_a_benchmark_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(["--speed", "--only", "lroa"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --only lroa: no such row")
    assert said.count("\n") == 1
