"""Registries and options: one declaration, checked where it is made, with errors that name what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from diffusion_adapters.options import Options, add_arguments, argument_parser, from_namespace, option
from diffusion_adapters.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Sample(Options):
    count: int = option(3, "how many, 100% of them", ge=1, le=9)
    rate: float = option(0.5, "how fast", gt=0, lt=1)
    kind: str = option("plain", "which", choices=("plain", "fancy"))
    fast: bool = option(True, "hurry")
    folder: Path | None = option(None, "where")  # noqa: RUF009
    names: tuple[str, ...] | None = option(None, "who")
    sizes: tuple[float, ...] = option((1.0,), "how large", ge=0)
    key: str | None = option(None, "what opens it", secret=True)


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"count": 0}, ValueError, "count must be at least 1, got 0"),
        ({"count": 10}, ValueError, "count must be at most 9, got 10"),
        ({"rate": 0}, ValueError, "rate must be greater than 0, got 0.0"),
        ({"rate": 1.0}, ValueError, "rate must be less than 1, got 1.0"),
        ({"rate": float("nan")}, ValueError, "rate must be a finite number, got nan"),
        ({"kind": "odd"}, ValueError, "kind must be one of plain, fancy; got 'odd'"),
        ({"count": "3"}, TypeError, "count must be int, got '3' (str)"),
        ({"count": True}, TypeError, "count must be int, got True (bool)"),
        ({"count": None}, TypeError, "count must be int, got None (NoneType)"),
        ({"fast": 1}, TypeError, "fast must be bool, got 1 (int)"),
        ({"sizes": [1, -2]}, ValueError, "sizes must be at least 0, got -2.0"),
        ({"sizes": [1, "2"]}, TypeError, "sizes must be float, got '2' (str)"),
        ({"sizes": 1.0}, TypeError, "sizes must be tuple, got 1.0 (float)"),
        ({"key": 1234}, TypeError, "key must be str, got a value (int)"),
        ({"cuont": 3}, ValueError, "unknown option 'cuont' for Sample, did you mean 'count'? available: count, fast"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Sample.from_mapping(values)
    assert str(caught.value).startswith(text)


def test_values_are_brought_to_their_kind() -> None:
    sample = Sample.from_mapping({"rate": 0.25, "folder": "here", "names": ["a", "b"]})
    assert (sample.folder, sample.names, sample.count) == (Path("here"), ("a", "b"), 3)
    assert isinstance(Sample(count=2, rate=0.5).rate, float)
    assert sample.as_dict()["folder"] == "here"
    assert Sample.from_mapping({"sizes": [1, 2]}).sizes == (1.0, 2.0)


def test_a_secret_is_not_shown() -> None:
    sample = Sample(key="open sesame")
    assert sample.key == "open sesame"
    assert "sesame" not in f"{sample!r} {sample.as_dict()}"


def test_flags_and_help_come_from_the_declaration(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argument_parser("What it does.")
    add_arguments(parser, Sample, "sample")
    args = parser.parse_args(["--count", "4", "--no-fast", "--names", "x", "y", "--folder", "there", "--sizes", "2"])
    assert from_namespace(Sample, args) == Sample(
        count=4, fast=False, names=("x", "y"), folder=Path("there"), sizes=(2.0,)
    )
    parser.print_help()
    text = capsys.readouterr().out
    for part in ("--count N", "how many, 100% of them (default: 3)", "--no-fast", "{plain,fancy}", "where\n"):
        assert part in text
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        from_namespace(Sample, parser.parse_args(["--count", "0"]))


def test_registry_refuses_what_is_taken_and_suggests_the_nearest() -> None:
    registry: Registry[type] = Registry("thing", "diffusion_adapters.families")
    registry.register("alpha", "first")(int)
    for name in ("alpha", "first"):
        with pytest.raises(ValueError, match=f"thing '{name}' is already taken by <class 'int'>"):
            registry.register(name)(float)
    with pytest.raises(ValueError, match="must be lower case"):
        registry.register("Beta")(float)
    assert registry["first"] is int
    assert list(registry) == ["alpha"]
    assert registry.aliases("alpha") == ["first"]
    with pytest.raises(ValueError, match="unknown thing 'alpah', did you mean 'alpha'\\? available: alpha"):
        registry["alpah"]
