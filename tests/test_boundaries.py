"""The rooms of the house: what may import what, what may know what, how large a file may grow."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusion_adapters
from diffusion_adapters import FAMILIES
from diffusion_adapters.adapter import Adapter, AdapterConfig

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "diffusion_adapters"
FILES = sorted(path for path in LIBRARY.rglob("*.py"))
FAMILY_FILES = sorted((LIBRARY / "families").glob("[!_]*.py"))
OURS = {"diffusion_adapters", "train", "ui", "pipelines", "tests"}
ATTENTION_WORDS = re.compile(r"\b(to_q|to_k|to_v|to_out|to_qkv|add_[qkv]_proj|attn\d?|attention)\b", re.IGNORECASE)

each_file = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(LIBRARY)) for path in FILES])
each_family_file = pytest.mark.parametrize("path", FAMILY_FILES, ids=[path.stem for path in FAMILY_FILES])
every_family = pytest.mark.parametrize("family", FAMILIES)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, at its top or inside functions."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            if node.module is None:  # `from . import x`: a module, or a public name of the package
                modules = {path.stem for path in LIBRARY.iterdir()}
                yield from (f"{start}.{alias.name}" if alias.name in modules else start for alias in node.names)
            else:
                yield start


def code_without_text(path: Path) -> str:
    """A file without docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [
                part
                for part in body
                if not (
                    isinstance(part, ast.Expr)
                    and isinstance(part.value, ast.Constant)
                    and isinstance(part.value.value, str)
                )
            ]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


@each_family_file
def test_a_family_knows_the_contract_only(path: Path) -> None:
    ours = {name for name in imports(path) if name.split(".")[0] in OURS}
    assert ours <= {f"diffusion_adapters.{name}" for name in ("adapter", "options", "linalg", "parts")}


@each_family_file
def test_a_family_names_no_attention_and_no_other_family(path: Path) -> None:
    code = code_without_text(path)
    assert not ATTENTION_WORDS.search(code)
    others = {name for name in FAMILIES if sys.modules[FAMILIES[name].__module__].__file__ != str(path)}
    strings = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    classes = {FAMILIES[name].__name__ for name in others}
    assert not names & classes
    # "lora" is also the name of a form that families offer as an option, a plain pair of factors
    assert not strings & (others - {"lora"})


@each_file
def test_the_library_stands_alone(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & (OURS - {"diffusion_adapters"})
    foreign = {"gradio", "peft", "matplotlib", "numpy"} - ({"peft"} if path.stem in ("text", "sparse") else set())
    assert not {name.split(".")[0] for name in imports(path)} & foreign


LAYERS = [
    ("registry",),
    ("options",),
    ("adapter", "linalg", "weight", "bands", "layout"),
    ("parts",),
    ("families", "labels", "prompt", "report", "text", "regions", "schedule", "source", "tokens", "vocabulary"),
    ("blend", "shared"),
    ("plan",),
    ("dials",),
    ("projection",),
    ("safe",),
    ("site",),
    ("processor", "outside"),
    ("hooks",),
    ("adapter_set", "build"),
    ("fuse", "file", "formats"),
    ("attach",),
    ("active", "slots", "content", "skeleton"),
    ("store", "doctor"),
    ("sources",),
    ("reduce", "dialects"),
    ("export", "shelf"),
    ("merge", "mergers", "bake"),
    ("compose",),
    ("__init__",),
    ("cli",),
    ("__main__",),
]
"""From the ground up: a file imports from the layers below its own, and from its own."""


@each_file
def test_imports_point_one_way(path: Path) -> None:
    def height(name: str) -> int:
        room = name.split(".")[1] if "." in name else "__init__"
        found = [i for i, layer in enumerate(LAYERS) if room in layer]
        assert found, f"{room} has no layer: give it one in LAYERS"
        return found[0]

    name = module_name(path)
    ours = [other for other in imports(path) if other.split(".")[0] == "diffusion_adapters"]
    own = height(f"{name}.{path.stem}" if path.parent == LIBRARY and path.stem == "__main__" else name)
    too_high = [other for other in ours if other != name and height(other) > own]
    assert not too_high


def test_only_the_sites_know_what_attention_is_made_of() -> None:
    """Names of projections stand in two files, as code; a docstring may give an example."""
    roles = re.compile(r"['\"](?:to_q|to_k|to_v|to_out|to_qkv|to_kv|add_[qkv]_proj|to_added_qkv)\b")
    knowing = {path.stem for path in FILES if roles.search(code_without_text(path))}
    assert knowing <= {"site", "layout"}


@each_file
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (120 if path in FAMILY_FILES else 220)


def test_files_of_tests_stay_small() -> None:
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: lines for name, lines in sizes.items() if lines > 300} == {}


WATCH = """
import sys, json
before = set(sys.modules)
import torch
torch_only = set(sys.modules)
import time
start = time.process_time()
import diffusion_adapters
from diffusion_adapters import add_adapter, load_adapter, FAMILIES
seconds = time.process_time() - start
added = sorted({name.split(".")[0] for name in set(sys.modules) - torch_only})
list(FAMILIES)
families = sorted({name.split(".")[0] for name in set(sys.modules)})
print(json.dumps([added, families, seconds]))
"""


def test_importing_takes_little_beyond_torch() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", WATCH], capture_output=True, text=True, check=True, env=environment, timeout=300
    )
    added, families, seconds = json.loads(result.stdout.splitlines()[-1])
    heavy = {"diffusers", "transformers", "gradio", "peft", "accelerate", "PIL", "matplotlib", "huggingface_hub"}
    assert not heavy & set(added)
    assert not heavy & set(families)
    assert "diffusion_adapters" in added
    assert seconds < 2.0


@pytest.mark.parametrize("name", diffusion_adapters.__all__)
def test_what_is_public_is_documented(name: str) -> None:
    thing = getattr(diffusion_adapters, name)
    if name == name.upper():
        return
    assert (inspect.getdoc(thing) or "").strip()
    if inspect.isclass(thing):
        methods = [m for key, m in vars(thing).items() if inspect.isfunction(m) and not key.startswith("_")]
        inherited = {key for base in thing.__mro__[1:] for key in vars(base)}
        assert all(m.__doc__ for m in methods if m.__name__ not in inherited)


@each_file
def test_functions_of_the_library_are_documented(path: Path) -> None:
    """Every public function at the top of a file, and every file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    families = path in FAMILY_FILES  # a family's file says in one place what its classes are
    assert not [name for name in bare if not (families and name[0].isupper())]


@every_family
def test_docstring_of_a_family_says_what_it_must(family: str) -> None:
    text = sys.modules[FAMILIES[family].__module__].__doc__ or ""
    lines = text.strip().splitlines()
    assert re.match(r"\w[\w-]*: \S", lines[0])
    assert re.search(r"^.* \d{4}, https://", text, re.MULTILINE)
    assert re.search(r"^ΔW = ", text, re.MULTILINE)
    assert re.search(r"^Starts at ", text, re.MULTILINE)
    assert re.search(r"^Trains .* values? per projection", text, re.MULTILINE)


@every_family
def test_a_family_declares_its_options(family: str) -> None:
    kind = FAMILIES[family]
    assert issubclass(kind, Adapter)
    assert issubclass(kind.Config, AdapterConfig)
    for field in dataclasses.fields(kind.Config):
        text = field.metadata["help"]
        assert text, field.name
        assert not text.endswith(".")
        assert text[0].islower() or text.split()[0].isupper(), text
    assert kind.Config() == kind.Config.from_mapping(json.loads(json.dumps(kind.Config().as_dict())))


def test_one_name_of_an_option_has_one_meaning() -> None:
    """Flags of all families stand in one help text: the same name is the same kind, with the same bounds."""
    seen: dict[str, tuple[str, object]] = {}
    for family in FAMILIES:
        config = FAMILIES[family].Config
        kinds = config.kinds()
        for field in dataclasses.fields(config):
            meaning = (kinds[field.name], field.metadata["bounds"], field.metadata["choices"])
            owner, first = seen.setdefault(field.name, (family, meaning))
            assert meaning == first, f"{field.name} of {family} differs from that of {owner}"
