"""A random user of a denoiser: any verb in any order, after each of which the output is that of a dense reference.

The user has its own book of what is attached, active, disabled and fused.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from diffusion_adapters import (
    AdapterWeight,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    fuse_adapters,
    get_active_adapters,
    list_adapters,
    load_adapter,
    save_adapter,
    set_adapters,
    unfuse_adapters,
)
from diffusion_adapters.hooks import find_adapter_set
from tests.hosts import inputs_in, run
from tests.reference import FILES, SCOPES, Blend, Numbers, bare, files, fresh, parts, reference

NAMES = ("a", "b", "c")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
WIDE_ERROR, HALF_ERROR = 1e-4, 0.05
"""How far the output may be from the reference's, as a part of its effect, or of a tenth of the base's output; in bf16
three times what that does to the reference itself is allowed on top."""


names, one_of_them = st.sampled_from(NAMES), st.integers(0, len(NAMES) - 1)
numbers = st.sampled_from((0.0, 0.25, -0.5, 1.0, 1.5))


class User(RuleBasedStateMachine):
    """The random user. Subclasses say of which denoiser."""

    host = "unet_sd15"
    taken = 0
    """Operations so far, of all users."""

    @initialize()
    def begin(self) -> None:
        self.model: Any = fresh(self.host)
        self.attached: dict[str, Numbers] = {}
        self.weights: dict[str, float | AdapterWeight] = {}
        self.enabled = True
        self.fused: Blend | None = None
        self.dtype, self.rounded = torch.float32, False

    # ---- verbs -------------------------------------------------------------------------------------------------------

    @rule(name=names, file=st.sampled_from(FILES), weight=numbers)
    def load(self, name: str, file: str, weight: float) -> None:
        path, content = files(self.host)[file]
        with self.refused(self.fused is not None or name in self.attached):
            load_adapter(self.model, path, name, adapter_weight=weight)
            self._loaded(name, content, weight)

    @rule(wanted=st.dictionaries(names, st.tuples(numbers, st.booleans())))
    def weigh(self, wanted: dict[str, tuple[float, bool]]) -> None:
        chosen = {
            name: AdapterWeight(number, scopes=SCOPES) if scoped else number
            for name, (number, scoped) in wanted.items()
            if name in self.attached
        }
        with self.refused(self.fused is not None):
            set_adapters(self.model, list(chosen), list(chosen.values()))
            self.weights, self.enabled = chosen, True

    @precondition(lambda self: self.attached and self.fused is None)
    @rule(which=one_of_them, file=st.sampled_from(FILES))
    def swap(self, which: int, file: str) -> None:
        """Another file under the same name."""
        name = self.chosen(which)
        weight = self.weights.get(name, 0.25)
        delete_adapters(self.model, name)
        path, content = files(self.host)[file]
        load_adapter(self.model, path, name, adapter_weight=weight)
        self.weights.pop(name, None)
        self._loaded(name, content, weight)

    @precondition(lambda self: self.attached)
    @rule(which=one_of_them)
    def delete(self, which: int) -> None:
        name = self.chosen(which)
        with self.refused(self.fused is not None):
            delete_adapters(self.model, name)
            del self.attached[name]
            self.weights.pop(name, None)
            self.enabled = self.enabled or not self.attached

    @rule()
    def disable(self) -> None:
        with self.refused(self.fused is not None):
            disable_adapters(self.model)
            self.enabled = not self.attached

    @rule()
    def enable(self) -> None:
        with self.refused(self.fused is not None):
            enable_adapters(self.model)
            self.enabled = True

    @rule()
    def fuse(self) -> None:
        with self.refused(self.fused is not None or not self.acting()):
            fuse_adapters(self.model)
            self.fused, self.rounded = self.acting(), self.dtype == torch.bfloat16

    @rule()
    def unfuse(self) -> None:
        with self.refused(self.fused is None):
            unfuse_adapters(self.model)
            self.fused, self.rounded = None, False

    @precondition(lambda self: self.attached and self.fused is None)
    @rule(which=one_of_them, other=names)
    def save_and_load(self, which: int, other: str) -> None:
        """Under another name, or its own again."""
        name = self.chosen(which)
        if other in self.attached:
            other = name
        with tempfile.TemporaryDirectory() as folder:
            path = save_adapter(self.model, name, Path(folder) / "saved.safetensors")
            if other == name:
                delete_adapters(self.model, name)
                self.weights.pop(name, None)
            load_adapter(self.model, path, other, adapter_weight=0.25)
        self._loaded(other, self.attached[name], 0.25)

    @rule(wrong=st.sampled_from(("nan", "name", "twice", "file")))
    def err(self, wrong: str) -> None:
        """What is refused changes nothing."""
        calls = {
            "nan": lambda: set_adapters(self.model, [*self.attached] or ["z"], float("nan")),
            "name": lambda: delete_adapters(self.model, [*self.attached, "z"]),
            "twice": lambda: set_adapters(self.model, ["a", "a"]),
            "file": lambda: load_adapter(self.model, "nowhere.safetensors", "z"),
        }
        with pytest.raises((ValueError, FileNotFoundError)):
            calls[wrong]()

    # ---- what else happens to a denoiser -----------------------------------------------------------------------------

    @precondition(lambda self: self.attached)
    @rule(which=one_of_them)
    def train(self, which: int) -> None:
        """All numbers of an adapter change in place, to those of the other file of its family."""
        name = self.chosen(which)
        family, variant = self.attached[name].file.split("-")
        path, content = files(self.host)[f"{family}-{1 - int(variant)}"]
        stored = safetensors.torch.load_file(path)
        part = next(iter(stored)).partition(".")[0]
        adapter_set = find_adapter_set(self.model)
        assert adapter_set is not None
        for place, adapter in adapter_set.of(name).items():
            adapter.load_state_dict({key: stored[f"{part}.{place}:{key}"] for key in adapter.state_dict()})
        self.attached[name] = content

    @rule(dtype=st.sampled_from(DTYPES))
    def cast(self, dtype: torch.dtype) -> None:
        nn.Module.to(self.model, dtype)
        self.dtype = dtype
        self.rounded |= self.fused is not None and dtype == torch.bfloat16

    @rule()
    def copy(self) -> None:
        self.model = copy.deepcopy(self.model)

    @rule()
    def replace_processors(self) -> None:
        """As many calls of diffusers do."""
        for module in self.model.modules():
            if callable(getattr(module, "processor", None)):
                module.set_processor(module.processor.__class__())

    # ---- what must be true at any time -------------------------------------------------------------------------------

    @invariant()
    def output_is_the_references(self) -> None:
        User.taken += 1
        blend = self.acting() if self.fused is None else self.fused
        with inputs_in(self.dtype):
            got = run(self.model, self.host)
        base = bare(self.host, self.dtype)
        if not blend:
            assert torch.equal(got, base)
            return
        wanted, wide = reference(self.host, blend), bare(self.host, torch.float32)
        scale = max(float((wanted - wide).norm()), 0.1 * float(wide.norm()))
        limit = WIDE_ERROR * scale
        if self.rounded or self.dtype == torch.bfloat16:
            limit = HALF_ERROR * scale + 3 * float((reference(self.host, blend, torch.bfloat16) - wanted).norm())
        assert float((got - wanted).norm()) < limit

    @invariant()
    def book_is_the_references(self) -> None:
        active = {name: parts(weight) for name, weight in get_active_adapters(self.model).items()}
        assert active == ({name: parts(weight) for name, weight in self.weights.items()} if self.enabled else {})
        assert set(list_adapters(self.model)) == set(self.attached)

    def chosen(self, which: int) -> str:
        """One of the attached adapters."""
        return list(self.attached)[which % len(self.attached)]

    def acting(self) -> Blend:
        """File and weight of what the next forward adds."""
        active = self.weights.items() if self.enabled else ()
        return tuple(sorted((self.attached[name].file, *parts(weight)) for name, weight in active if parts(weight)[0]))

    def _loaded(self, name: str, content: Numbers, weight: float | AdapterWeight) -> None:
        self.attached[name] = content
        self.weights[name] = weight
        self.enabled = True

    @contextmanager
    def refused(self, expected: bool) -> Any:
        """Inside, an error is raised if and only if it is `expected`; then the book is not touched."""
        if not expected:
            yield
            return
        with pytest.raises((RuntimeError, ValueError)):
            yield
