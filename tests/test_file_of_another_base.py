"""Adapter files whose tensors do not fit, and those of another base: refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_adapters import FAMILIES, add_adapter, list_adapters, load_adapter, save_adapter
from tests.files import assert_refused, parts, rewrite, saved
from tests.hosts import HOST, build, small

PLACE = "transformer_blocks.0.attn.to_q"

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(tmp_path)


@every_family
@pytest.mark.parametrize(
    "fault", ["missing", "unexpected", "misshapen", "place missing", "place unknown", "nan", "inf"]
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, model: nn.Module, family: str, fault: str) -> None:
    path = saved(tmp_path, family)
    keys = sorted(key for key in parts(path)[0] if key.startswith(f"transformer.{PLACE}:"))
    key = keys[0]
    name = key.rpartition(":")[2]
    text = {
        "missing": rf"{PLACE}, weight \(16, 16\): .*missing {name}" if len(keys) > 1 else "incomplete: 1 projections",
        "unexpected": rf"{PLACE}, weight \(16, 16\): unexpected extra",
        "misshapen": rf"{PLACE}, weight \(16, 16\): {name} has shape .* instead of",
        "place missing": rf"incomplete: 1 projections are missing, the first is {PLACE}",
        "place unknown": r"made for another base, .*: 1 of \d+ projections do not exist here, .* blocks\.x",
        "nan": rf"transformer\.{PLACE}:\w+.* is not finite",
        "inf": rf"transformer\.{PLACE}:\w+.* is not finite",
    }

    def change(tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        if fault == "missing":
            del tensors[key]
        elif fault == "unexpected":
            tensors[f"transformer.{PLACE}:extra"] = torch.zeros(2)
        elif fault == "misshapen":
            tensors[key] = torch.zeros((*tensors[key].shape, 3), dtype=tensors[key].dtype)
        elif fault == "place missing":
            for other in [other for other in tensors if other.startswith(f"transformer.{PLACE}:")]:
                del tensors[other]
        elif fault == "place unknown":
            tensors["transformer.blocks.x:A"] = torch.zeros(2, 2)
        else:
            value = next(
                v for k, v in tensors.items() if k.startswith(f"transformer.{PLACE}:") and v.is_floating_point()
            )
            value.view(-1)[0] = float(fault)

    assert_refused(model, rewrite(path, change), text[fault])


def test_an_adapter_that_is_not_finite_is_not_saved(model: nn.Module, tmp_path: Path) -> None:
    adapter_set = add_adapter(model, "one", rank=1)
    path = save_adapter(model, "one", tmp_path / "one.safetensors")
    before = path.read_bytes()
    with torch.no_grad():
        next(adapter_set.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(
        ValueError,
        match=r"transformer\.transformer_blocks.*\.to_q:\w+ is not finite in torch\.float32; nothing was saved",
    ):
        save_adapter(model, "one", path)
    assert path.read_bytes() == before


# ---- another base ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["sd3", "unet_sd15", "sd3_controlnet"])
@every_family
def test_another_base_is_refused_by_name(tmp_path: Path, model: nn.Module, family: str, other: str) -> None:
    path = saved(tmp_path, family, host=other)
    made_for = type(build(other)).__name__
    text = (
        rf"made for another base, {made_for} .*\[[0-9a-f]{{16}}\]; this is FluxTransformer2DModel .*\[[0-9a-f]{{16}}\]"
    )
    assert_refused(model, path, text)


def test_another_width_is_refused(tmp_path: Path, model: nn.Module) -> None:
    from diffusers import FluxTransformer2DModel

    config = {k: v for k, v in model.config.items() if not k.startswith("_")}  # type: ignore[union-attr,operator]
    wide = FluxTransformer2DModel(**{**config, "num_attention_heads": 3})
    add_adapter(wide, "one", rank=1)
    path = save_adapter(wide, "one", tmp_path / "one.safetensors")
    assert_refused(model, path, r"made for another base, FluxTransformer2DModel .*: its sizes are others")


def holds_weights(family: str) -> bool:
    """Whether a file of the family has something of the weights of its base."""
    made = FAMILIES[family](torch.randn(16, 16), FAMILIES[family].Config(**small(family)))
    return made.state_dict().keys() != dict(made.named_parameters()).keys()


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].reads_weight and holds_weights(f)])
def test_other_weights_are_refused_by_families_that_hold_them(tmp_path: Path, family: str) -> None:
    path = saved(tmp_path, family)
    other = build(HOST, seed=1)
    assert_refused(other, path, r"to_\w+.*not the base that the adapter was made for")


def test_a_file_of_a_component_that_is_not_there(tmp_path: Path) -> None:
    from types import SimpleNamespace

    parts = {"transformer": build("flux"), "transformer_2": build("flux")}
    pipe = SimpleNamespace(components=parts)
    for part in parts.values():
        add_adapter(part, "one", rank=1)
    path = save_adapter(pipe, "one", tmp_path / "one.safetensors")
    model = build("flux")
    with pytest.raises(ValueError, match=r"made for transformer_2; this model has transformer$"):
        load_adapter(model, path)
    assert list_adapters(model) == {}
