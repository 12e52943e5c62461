"""The attention processor: runs the processor it wraps on a view of the attention module with adapted projections."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .site import Site


class AdapterAttnProcessor:
    """Runs the processor that an attention module had, on the view of its site.

    A wrapper is an instance of a subclass, made per wrapped class, that shares the wrapped processor's `__dict__`,
    shows its class as `__class__` and has the exact signature of its `__call__`, by which diffusers filters arguments.
    """

    __slots__ = ()
    _site: Site


@functools.cache
def _wrapper_class(kind: Any) -> type:
    members = {
        "__slots__": ("_site",),
        "__call__": _same_call(kind.__call__),
        "__class__": property(lambda wrapper: kind),
        "__reduce_ex__": lambda wrapper, protocol: (wrap, (unwrap(wrapper), wrapper._site)),
        "__deepcopy__": lambda wrapper, memo: wrap(*copy.deepcopy((unwrap(wrapper), wrapper._site), memo)),
    }
    return type(f"Adapted{kind.__name__}", (AdapterAttnProcessor, kind), members)


def _same_call(inner: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the parameters of `inner` that calls it with a view in place of the attention module.

    It is generated: one with (attn, *args, **kwargs) would lose keyword arguments, and torch.compile does not take a
    `__signature__` that says something else than the code.
    """
    parameters = list(inspect.signature(inner).parameters.values())
    processor, attention = parameters[0].name, parameters[1].name
    declared, passed = [], []
    for i, parameter in enumerate(parameters):
        name = parameter.name
        keyword = parameter.kind is parameter.KEYWORD_ONLY
        if keyword and not any(
            before.kind in (before.VAR_POSITIONAL, before.KEYWORD_ONLY) for before in parameters[:i]
        ):
            declared.append("*")
        stars = (
            "*"
            if parameter.kind is parameter.VAR_POSITIONAL
            else "**"
            if parameter.kind is parameter.VAR_KEYWORD
            else ""
        )
        default = "" if parameter.default is parameter.empty else f"=_parameters[{i}].default"
        declared.append(stars + name + default)
        value = "_view" if name == attention else name
        passed.append(f"{name}={value}" if keyword else stars + value)
    scope: dict[str, Any] = {"_inner": inner, "_parameters": parameters}
    body = f"return {processor}._site.compose({attention}, lambda _view: _inner({', '.join(passed)}))"
    exec(f"def __call__({', '.join(declared)}):\n    {body}\n", scope)
    call = scope["__call__"]
    if call.__defaults__ is None:
        call.__defaults__ = ()  # torch.compile guards on its length
    return call


def is_wrapped(processor: object) -> bool:
    """Whether `processor` is one of ours; `isinstance` would be misled by the `__class__` that it shows."""
    return issubclass(type(processor), AdapterAttnProcessor)


def wrap(processor: Any, site: Site) -> Any:
    """A processor that runs `processor` with the adapted projections of `site`."""
    kind: Any = type(processor)
    wrapper: Any = object.__new__(_wrapper_class(kind))
    object.__setattr__(wrapper, "__dict__", processor.__dict__)
    object.__setattr__(wrapper, "_site", site)
    return wrapper


def unwrap(wrapper: Any) -> Any:
    """The processor inside `wrapper`, with the state that both share."""
    processor = object.__new__(wrapper.__class__)
    object.__setattr__(processor, "__dict__", wrapper.__dict__)
    return processor


def set_processor(attention: nn.Module, processor: Any) -> None:
    """Put `processor` on `attention` by whatever way it offers."""
    setter: Callable[[Any], None] | None = getattr(attention, "set_processor", None)
    if setter is None:
        attention.processor = processor
    else:
        setter(processor)
