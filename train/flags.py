"""Options <-> command line <-> TOML: a script's own flags, and those of the one adapter family that was chosen."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from diffusion_adapters.adapter import FAMILIES, AdapterConfig
from diffusion_adapters.dials import family_of_domains
from diffusion_adapters.options import Options, Table, add_arguments, argument_parser, from_namespace, option

CONFIGS = Path(__file__).parent / "configs"
BASE_FLAG, HYBRID = "pretrained_model_name_or_path", family_of_domains()

S = TypeVar("S", bound=Options)


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options):
    title: ClassVar[str] = "adapter"
    adapter: str = option("wara", f"family of the adapter: {', '.join(FAMILIES)}")
    target_modules: tuple[str, ...] | None = option(None, "projections to adapt: to_q, attn2.to_k, ... (default: all)")


def parse(script: type[S], description: str | None, argv: Sequence[str] | None = None) -> tuple[S, AdapterConfig]:
    """The script's options and those of the family named by `--adapter`, from a command line.

    Each layer overrides the one before: defaults, `train/configs/<name of the base>.toml`, `--config`, the flags.
    Raises ValueError or TypeError with one line for anything wrong; `--help` exits.
    """
    early = read_flags(argv, "adapter", "family", "parts", "config", BASE_FLAG)
    values = read_config(Path(early["config"])) if "config" in early else {}
    chosen = {**_defaults(script), **values, **early}
    adapter = FAMILIES.canonical(chosen["adapter"])
    table = values.get(HYBRID)
    given = {**values, **(table if isinstance(table, dict) else {}), **early}
    # A hybrid whose parts are not given one by one has the same options for all: those of their family.
    alike = adapter == HYBRID and "family" in chosen and "parts" not in given
    family = FAMILIES.canonical(chosen["family"]) if alike else adapter
    layers = [(known_good(chosen[BASE_FLAG]), None), (values, early.get("config"))]

    parser = _quiet(
        argument_parser(description, usage="%(prog)s [--adapter FAMILY] [--config FILE] [--OPTION VALUE ...]")
    )
    parser.add_argument("--config", type=Path, metavar="PATH", help="TOML file with the same names; flags override it")
    for group in script.__bases__:
        add_arguments(parser, group, getattr(group, "title", None))
    add_arguments(
        parser, FAMILIES[family].Config, f"options of --{'family' if adapter != family else 'adapter'} {family}"
    )
    for layer, source in layers:
        parser.set_defaults(**for_family(layer, family, script, source, adapter))
    parser.set_defaults(adapter=adapter)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(_unknown_flag(unknown[0], parser, family))
    namespace.adapter = adapter
    if adapter != family:
        namespace.family = family
    config, own = from_namespace(script, namespace), from_namespace(FAMILIES[family].Config, namespace)
    idle = config.idle(own)
    for name in _given(parser, sys.argv[1:] if argv is None else argv):  # a file has every option, and means none by it
        if name in idle:
            raise ValueError(f"--{name} has no effect {idle[name]}; leave it out")
    return config, own


def read_flags(argv: Sequence[str] | None, *names: str) -> dict[str, str]:
    """The values of some flags of a command line, unchecked, by name; those that are not there are left out."""
    parser = _quiet(argument_parser(None, add_help=False))
    for name in names:
        parser.add_argument(f"--{name}")
    return {name: value for name, value in vars(parser.parse_known_args(argv)[0]).items() if value is not None}


def read_config(path: Path) -> dict[str, Any]:
    """The values and tables of a TOML file. Raises FileNotFoundError, or ValueError with the place of the mistake."""
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def known_good(base: str) -> dict[str, Any]:
    """The settings of `train/configs/<name>.toml` for the base `.../<name>`, or nothing if there is no such file."""
    path = CONFIGS / f"{Path(base).name}.toml"
    return read_config(path) if path.is_file() else {}


def for_family(
    values: Mapping[str, Any], family: str, script: type[Options], source: str | None = None, adapter: str = ""
) -> dict[str, Any]:
    """`values` without tables, then the table `[family]`, which overrides. Raises ValueError for an unknown name.

    `adapter`: where it is not the family of which the options are, its table counts as well, and last.
    """
    place = f"{source}: " if source else ""
    fields = [field for kind in (script, FAMILIES[family].Config) for field in dataclasses.fields(kind)]
    tables = {name for own in FAMILIES for name, kind in FAMILIES[own].Config.kinds().items() if kind[0] is Table}
    flat = {name: value for name, value in values.items() if name in tables or not isinstance(value, dict)}
    found: dict[str, dict[str, Any]] = {}
    for name, table in values.items():
        if isinstance(table, dict) and name not in tables:
            try:
                owner = FAMILIES.canonical(name)
            except ValueError as error:
                raise ValueError(f"{place}table [{name}]: {error}") from None
            found[owner] = {**found.get(owner, {}), **table}
    for owner in (family, adapter):
        flat.update(found.get(owner, {}))
    known = {field.name for field in fields}
    for name in flat:
        if name in {field.name for field in fields if field.metadata.get("secret")}:
            raise ValueError(f"{place}{name} does not belong in a file, which others may read; give it as a flag")
        if name not in known:
            raise ValueError(f"{place}unknown option {name!r} for --adapter {family}{_suggest(name, known)}")
    return flat


def to_toml(*options: Options) -> str:
    """The values of `options` as TOML that `--config` reads back; None is left out."""
    values = {name: value for group in options for name, value in group.as_dict().items() if value is not None}
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in values.items())


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(own)}" for key, own in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _defaults(script: type[Options]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(script)}


def _given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The options whose flags are on a command line."""
    flags = parser._option_string_actions
    return [flags[flag].dest for word in argv if (flag := word.split("=")[0]) in flags]


def _quiet(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser that raises ValueError where argparse would print its usage and exit."""

    def fail(message: str) -> NoReturn:
        raise ValueError(message)

    parser.error = fail  # type: ignore[method-assign]
    return parser


def _unknown_flag(text: str, parser: argparse.ArgumentParser, family: str) -> str:
    flag = text.split("=")[0]
    if not flag.startswith("--"):
        return f"unexpected argument {text!r}; every value follows its flag, and --help lists them"
    name = flag.removeprefix("--")
    for other in FAMILIES:
        if name in {field.name for field in dataclasses.fields(FAMILIES[other].Config)}:
            return f"flag {flag} belongs to --adapter {other}, not to --adapter {family}"
    known = {option for action in parser._actions for option in action.option_strings}
    return f"unknown flag {flag}{_suggest(flag, known) or ';'} --help lists all"


def _suggest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
