"""How a function becomes an endpoint for programs: typed and labelled by its hints, checked, and stopped on request."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import gradio as gr
from gradio.components import Component
from gradio.components.api_component import Api
from gradio_client.utils import python_type_to_json_schema

from ui.common import PAUSE, App
from ui.library import ERRORS
from ui.studio import StoppedError, Turn

KINDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a mapping",
    NoneType: "nothing",
}  # fmt: skip


class Programs:
    """Adds endpoints to the open page. What they take is made once for all to which it means the same."""

    def __init__(self, app: App) -> None:
        self.app, self.button = app, gr.Button(visible=False)
        self.fields: dict[str, Api] = {}

    def add(
        self, function: Callable[..., Any], *returns: str | Component, name: str = "",
        files: Mapping[str, Component] | None = None, **event: Any,
    ) -> None:  # fmt: skip
        """Let programs call `function`, by its own name or `name`.

        Its docstring, its hints and its defaults are what they are told; a hint `Annotated[kind, words]` says what is
        meant. `returns`: the label of each value returned, or the component that makes a file of it. `files`: the
        components of the parameters that are files. `event`: what gradio takes for an event. A function that yields
        is called with `check` as well, which it calls often and which raises once nobody waits for the result any
        more; the last value that it yields is the result.
        """
        hints, yields = get_type_hints(function, include_extras=True), inspect.isgeneratorfunction(function)
        own = [part for part in inspect.signature(function).parameters.values() if part.kind is not part.KEYWORD_ONLY]
        takes = [part.replace(annotation=hints[part.name]) for part in own]
        call = (self._stoppable if yields else self._call)(function, takes)
        call.__signature__, call.__annotations__ = inspect.Signature(takes), {p.name: p.annotation for p in takes}
        back = get_args(hints["return"])[0] if yields else hints["return"]
        kinds = zip([back] if len(returns) == 1 else get_args(back), returns, strict=True)
        made = [_api(None, kind, one) if isinstance(one, str) else one for kind, one in kinds]
        given = [(files or {}).get(part.name) or self._field(part) for part in takes]
        self.button.click(call, given, made, api_name=name or function.__name__, show_progress="hidden", **event)

    def _field(self, part: inspect.Parameter) -> Api:
        """The component of a parameter."""
        default = None if part.default is part.empty else part.default
        hint, words = _meant(part.annotation)
        key = f"{part.name} {hint} {words} {default!r}"
        if key not in self.fields:
            self.fields[key] = _api(default, hint, words or part.name)
        return self.fields[key]

    def _call(self, function: Callable[..., Any], takes: list[inspect.Parameter]) -> Any:
        @functools.wraps(function)
        def call(*given: Any) -> Any:
            with self._in_words():
                return function(**_checked(takes, given))

        return call

    def _stoppable(self, function: Callable[..., Iterator[Any]], takes: list[inspect.Parameter]) -> Any:
        """Gradio closes what yields when its client cancels or is gone, and nothing else."""

        @functools.wraps(function)
        async def call(*given: Any) -> AsyncIterator[Any]:
            turn = Turn()
            check, last = turn.take(), None

            def work() -> None:
                nonlocal last
                try:
                    for now in function(**_checked(takes, given), check=check):
                        last = now
                        check()
                except StoppedError:  # nobody hears of it
                    pass

            job = asyncio.ensure_future(asyncio.to_thread(work))
            job.add_done_callback(lambda job: job.cancelled() or job.exception())  # else it is logged if nobody waits
            try:
                while not (await asyncio.wait({job}, timeout=PAUSE))[0]:
                    if last is not None:
                        yield last
                with self._in_words():
                    await job
                yield last
            finally:
                turn.end()

        return call

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """What the library refuses as the text of the answer: plain, unlike that of `App.toasts`, which is HTML."""
        try:
            yield
        except ERRORS as error:
            raise gr.Error(self.app.library.plain(error), print_exception=False) from None


def _api(value: Any, hint: Any, label: str) -> Api:
    """A component that is in no browser. That what may be left out may be null goes without saying."""
    hint, _ = _meant(hint)
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if isinstance(hint, UnionType) else [hint]
    return Api(value, python_type_to_json_schema(kinds[0]), label)


def _meant(hint: Any) -> tuple[Any, str]:
    """The type of a hint, and the words that `Annotated` adds."""
    return (hint.__origin__, hint.__metadata__[0]) if hasattr(hint, "__metadata__") else (hint, "")


def _checked(takes: list[inspect.Parameter], given: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments by name; null is the default. Raises TypeError for what is not of the kind of its hint."""
    found = {}
    for part, value in zip(takes, given, strict=True):
        hint, words = _meant(part.annotation)
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if value is None and part.default is not part.empty:
            value = part.default
        elif not any(_is(kind, value) for kind in kinds):
            if str not in kinds or isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{part.name} must be {words or _kind(kinds[0])}, got {_told(value)}")
            value = str(value)
        elif int in kinds and isinstance(value, float):
            value = int(value)
        found[part.name] = value
    return found


def _is(kind: Any, value: Any) -> bool:
    """Whether a value out of JSON, which knows no difference between 20 and 20.0, is of a kind."""
    own = get_origin(kind) or kind
    if own is bool or isinstance(value, bool):
        return own is bool and isinstance(value, bool)
    if own is int and isinstance(value, float):
        return value.is_integer()
    if own is list and isinstance(value, list):
        return all(_is(get_args(kind)[0], one) for one in value)
    return isinstance(value, (int, float) if own is float else own)


def _kind(hint: Any) -> str:
    return KINDS.get(get_origin(hint) or hint, "a file")


def _told(value: Any) -> str:
    """A value in an error: what it is, and what it says if that is short."""
    if isinstance(value, list | dict):
        return f"{KINDS[type(value)]}: {str(value)[:60]}" if value else f"{KINDS[type(value)]} of nothing"
    return "nothing" if value is None else repr(value)[:60]
