"""The command `families`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from ..adapter import FAMILIES
from .common import COMMANDS, Command


@COMMANDS.register("families")
class Families(Command):
    """List the adapter families with their options."""

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        for name in FAMILIES:
            aliases = ", ".join(FAMILIES.aliases(name))
            print(f"{name}{f' (alias {aliases})' if aliases else ''}: {title(name)}")
            for field in dataclasses.fields(FAMILIES[name].Config):
                print(f"    {field.name:<18} {field.metadata['help']} (default: {field.default})")


def title(family: str) -> str:
    """The first line of what a family's file says of it."""
    text = sys.modules[FAMILIES[family].__module__].__doc__ or ""
    return text.strip().splitlines()[0]


def pairs(values: Mapping[str, Any]) -> str:
    """`name=value` of each, on one line."""
    return ", ".join(f"{key}={value}" for key, value in values.items())
