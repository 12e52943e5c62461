"""A registry: names to objects, filled by decorators in the files of one package, read by everything that loops."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown `name`: the nearest known one, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}available: {', '.join(known) or 'none'}"


class Registry(Generic[T]):
    """Objects by name. Every file of `package` is imported at the first look-up, so a new file needs no other edit."""

    def __init__(self, noun: str, package: str) -> None:
        self.noun = noun
        self.package = package
        self._entries: dict[str, T] = {}
        self._aliases: dict[str, str] = {}
        self._scanned = False

    def register(self, name: str, *aliases: str) -> Callable[[T], T]:
        """Decorator that enters its object under `name`, and under each alias. Raises ValueError if one is taken."""

        def enter(entry: T) -> T:
            for key in (name, *aliases):
                if key != key.lower():
                    raise ValueError(f"{self.noun} name {key!r} must be lower case")
                holder = self._entries.get(self._aliases.get(key, key))
                if holder is not None:
                    raise ValueError(f"{self.noun} {key!r} is already taken by {holder!r}")
            self._entries[name] = entry
            self._aliases.update(dict.fromkeys(aliases, name))
            return entry

        return enter

    def canonical(self, name: str) -> str:
        """The registered name behind `name` or an alias of it. Raises ValueError with the nearest name."""
        self._scan()
        name = self._aliases.get(name, name)
        if name not in self._entries:
            raise ValueError(f"unknown {self.noun} {name!r}, {nearest(name, self._entries)}")
        return name

    def aliases(self, name: str) -> list[str]:
        """Other names under which `name` is found."""
        self._scan()
        return sorted(alias for alias, target in self._aliases.items() if target == name)

    def __getitem__(self, name: str) -> T:
        return self._entries[self.canonical(name)]

    def __iter__(self) -> Iterator[str]:
        self._scan()
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        self._scan()
        return name in self._entries or name in self._aliases

    def __len__(self) -> int:
        self._scan()
        return len(self._entries)

    def _scan(self) -> None:
        if self._scanned:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._scanned = True
