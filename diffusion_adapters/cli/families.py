"""The command `families`."""

from __future__ import annotations

import argparse
import dataclasses

from ..adapter import FAMILIES
from ..report import family_title
from .common import COMMANDS, Command


@COMMANDS.register("families")
class Families(Command):
    """List the adapter families with their options."""

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        for name in FAMILIES:
            aliases = ", ".join(FAMILIES.aliases(name))
            print(f"{name}{f' (alias {aliases})' if aliases else ''}: {family_title(name)}")
            for field in dataclasses.fields(FAMILIES[name].Config):
                print(f"    {field.name:<18} {field.metadata['help']} (default: {field.default})")
