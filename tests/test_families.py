"""The conformance suite: every check, of every family, in every configuration. Names no family."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path

import pytest

from diffusion_adapters.adapter import FAMILIES, AdapterConfig
from tests.conformance import CHECKS
from tests.probes import Overrides, cases

ROOT = Path(__file__).parents[1]
CASES = list(cases())


def label(value: object) -> str | None:
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize(("name", "overrides"), CASES, ids=label)
def test_conforms(name: str, overrides: Overrides, check) -> None:
    check(FAMILIES[name], overrides)


@pytest.mark.parametrize("name", FAMILIES)
def test_docstring(name: str) -> None:
    """Paper with authors, year and link; the formula; the start; the count. Then the file is not too long."""
    module = sys.modules[FAMILIES[name].__module__]
    text = module.__doc__ or ""
    assert re.search(r"https://\S+", text), "no link"
    assert re.search(r"^[A-Z].* (19|20)\d\d, https://", text, re.M), "no line 'Authors YEAR, https://…'"
    assert re.search(r"^(W \+ )?ΔW = \S", text, re.M), "no line 'ΔW = …'"
    assert re.search(r"\b[A-Za-z]\w*\s\([^)]*\b(in|out|rank)\b[^)]*\)", text), "no shape stands beside its symbol"
    assert re.search(r"^Starts at ", text, re.M), "no line 'Starts at …'"
    assert re.search(r"^Trains .*values per projection", text, re.M), "no line 'Trains … values per projection'"
    lines = Path(inspect.getfile(module)).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120, f"{len(lines)} lines"


@pytest.mark.parametrize("name", FAMILIES)
def test_options_are_declared(name: str) -> None:
    config = FAMILIES[name].Config
    assert issubclass(config, AdapterConfig)
    assert config() == config.from_mapping(config().as_dict()), "the defaults are not a configuration"
    for field in dataclasses.fields(config):
        assert len(field.metadata["help"]) > 10, f"{field.name} has no help"
        assert not field.metadata["help"].endswith("."), f"{field.name}: help is a phrase, without a full stop"


@pytest.mark.parametrize("name", FAMILIES)
def test_family_stands_alone(name: str) -> None:
    """A family imports the contract and pure functions; it reads no files and moves nothing between devices."""
    source = Path(inspect.getfile(FAMILIES[name])).read_text(encoding="utf-8")
    tree = ast.parse(source)
    own = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert set(own) <= {"adapter", "linalg", "options", "parts"}, own
    for word in ("open(", "print(", "logging", ".cuda(", "getLogger", "attention"):
        assert word not in source, f"{word} in a family"


def test_names_of_families_stay_in_their_files() -> None:
    """A new family is one new file: nothing else in the code knows any by name, but for a declared default."""
    names = {word for name in FAMILIES for word in (name, *FAMILIES.aliases(name), FAMILIES[name].__name__)}
    assert len(names) >= len(FAMILIES)
    found = []
    for folder in ("diffusion_adapters", "train", "ui", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name == "families":
                continue
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            defaults = {id(d) for n in nodes if isinstance(n, ast.arguments) for d in (*n.defaults, *n.kw_defaults)}
            calls = (n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "option" and n.args)
            defaults |= {id(call.args[0]) for call in calls}
            for node in nodes:
                word = next((getattr(node, field) for field in ("value", "id", "attr") if hasattr(node, field)), None)
                imports = isinstance(node, ast.ImportFrom) and ".families." in f".{node.module}."
                if imports or (isinstance(word, str) and word in names and id(node) not in defaults):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, found
