"""One declaration of a hyperparameter: default, help and bounds feed the checks, the flags, the file and the docs."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .registry import nearest


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[Any] | None = None,
    secret: bool = False,
) -> Any:
    """A field of an `Options` class. `ge, gt, le, lt` bound a number, or each of several; `choices` lists the allowed
    values. What is `secret` is shown by no repr and no message, and written to no file."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {"help": help, "bounds": {k: v for k, v in bounds.items() if v is not None}, "choices": choices}
    return dataclasses.field(default=default, repr=not secret, metadata={**metadata, "secret": secret})


class Table(dict[str, Any]):
    """A mapping of names as the value of an option: JSON on the command line and in files, a table in TOML."""

    def __hash__(self) -> int:  # type: ignore[override]  # options are frozen: nobody writes to it
        return hash(str(self))

    def __str__(self) -> str:
        return json.dumps(self, default=str)

    @classmethod
    def read(cls, text: str) -> Table:
        """From JSON. Raises argparse.ArgumentTypeError for anything else."""
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise argparse.ArgumentTypeError(f"{text} is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise argparse.ArgumentTypeError(f"{text} must be a JSON object: " + '{"name": ...}')
        return cls(found)


_BOUNDS = {
    "ge": (lambda value, bound: value >= bound, "at least"),
    "gt": (lambda value, bound: value > bound, "greater than"),
    "le": (lambda value, bound: value <= bound, "at most"),
    "lt": (lambda value, bound: value < bound, "less than"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every group of hyperparameters: frozen, keyword-only, checked when made.

    Raises ValueError for a value out of bounds or choices, TypeError for one of the wrong kind; both name the field.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, self._checked(field, getattr(self, field.name)))

    @classmethod
    @functools.cache
    def kinds(cls) -> dict[str, tuple[type, bool]]:
        """Name -> (type of one value, whether None is allowed)."""
        hints = typing.get_type_hints(cls)
        found = {}
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            kind = next(part for part in parts if part is not type(None))
            found[field.name] = (typing.get_origin(kind) or kind, type(None) in parts)
        return found

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from names and values, as read from a file. An unknown name is a ValueError with the nearest one."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"unknown option {name!r} for {cls.__name__}, {nearest(name, known)}")
        return cls(**values)

    def idle(self, others: Options) -> dict[str, str]:
        """Why options, of these or of `others`, have no effect beside those that are set, by name."""
        return {}

    @classmethod
    def items(cls, name: str) -> type:
        """The type of one element of the tuple `name`."""
        hint = typing.get_type_hints(cls)[name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        return next(typing.get_args(part)[0] for part in parts if typing.get_origin(part) is tuple)

    def as_dict(self) -> dict[str, Any]:
        """Names and values but secrets, in the order of declaration; paths as text, as JSON and TOML want it."""
        shown = [field.name for field in dataclasses.fields(self) if not field.metadata.get("secret")]
        return {name: _plain(getattr(self, name)) for name in shown}

    def _checked(self, field: dataclasses.Field[Any], value: Any) -> Any:
        kind, optional = self.kinds()[field.name]
        if value is None and optional:
            return None
        if kind is tuple and isinstance(value, (list, tuple)):
            return tuple(self._checked_one(field, item, self.items(field.name)) for item in value)
        return self._checked_one(field, value, kind)

    def _checked_one(self, field: dataclasses.Field[Any], value: Any, kind: type) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is Table and isinstance(value, Mapping):
            value = Table(value)
        if kind is Path and isinstance(value, str):
            value = Path(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            said = "a value" if field.metadata.get("secret") else repr(value)
            raise TypeError(f"{field.name} must be {kind.__name__}, got {said} ({type(value).__name__})")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be a finite number, got {value}")
        choices = field.metadata.get("choices")
        if choices is not None and value not in choices:
            raise ValueError(f"{field.name} must be one of {', '.join(map(str, choices))}; got {value!r}")
        for name, bound in field.metadata.get("bounds", {}).items():
            holds, words = _BOUNDS[name]
            if not holds(value, bound):
                raise ValueError(f"{field.name} must be {words} {bound}, got {value}")
        return value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else value


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default in use, in place of one that the help describes; None and False go without saying."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.help is None:
            return action.help
        said = re.sub(r" \(default: .*\)$", "", action.help)
        many = isinstance(action.default, (list, tuple))
        shown = "; ".join(map(str, action.default)).replace("%", "%%") if many else "%(default)s"
        return said if action.default is argparse.SUPPRESS else f"{said} (default: {shown})"


class _Given(list[Any]):
    """Values from the command line, as told from a default."""


class _Gather(argparse.Action):
    """A flag of several values, which may also come one at a time: `--x a b` is `--x a --x b`."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, _Given([*(before if isinstance(before, _Given) else ()), *values]))


def argument_parser(description: str | None, **kwargs: Any) -> argparse.ArgumentParser:
    """An argparse parser whose help keeps the layout of `description` and shows defaults; no short flags."""
    kwargs.setdefault("allow_abbrev", False)
    return argparse.ArgumentParser(description=description, formatter_class=_RawHelpFormatter, **kwargs)


class _RawHelpFormatter(_HelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def add_arguments(parser: argparse.ArgumentParser, options: type[Options], title: str | None = None) -> None:
    """Add a flag `--name` for each field of `options`; booleans get `--name` and `--no-name`."""
    group: Any = parser.add_argument_group(title) if title else parser
    for field in dataclasses.fields(options):
        kind, _ = options.kinds()[field.name]
        settings: dict[str, Any] = {"default": field.default, "help": field.metadata["help"].replace("%", "%%")}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif kind is tuple:
            kind = options.items(field.name)
            settings.update(nargs="+", action=_Gather)
        if kind is not bool:
            settings.update(type=Table.read if kind is Table else kind, choices=field.metadata.get("choices"))
            if settings["choices"] is None:
                settings["metavar"] = {int: "N", float: "X", Path: "PATH", Table: "JSON"}.get(kind, "TEXT")
        group.add_argument(f"--{field.name}", **settings)


def from_namespace(options: type[Options], namespace: argparse.Namespace) -> Any:
    """The checked `options` from a parsed command line."""
    return options.from_mapping({field.name: getattr(namespace, field.name) for field in dataclasses.fields(options)})
