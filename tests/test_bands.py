"""Weights by frequency band, those of a wavelet transform."""

from __future__ import annotations

from typing import Any

import pytest
import pywt
import torch
from torch import Tensor

from diffusion_adapters import FAMILIES, AdapterWeight, add_adapter, set_adapters
from diffusion_adapters.bands import filter_bands
from diffusion_adapters.hooks import find_adapter_set
from tests.hosts import HOSTS, TOLERANCE, adapt, build, call, distance, stir

every_host = pytest.mark.parametrize("host", HOSTS)


def test_bands_are_those_of_a_wavelet_transform() -> None:
    values = torch.randn(2, 64, 3)
    for gains in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, -1.0, 2.0)):
        image = values.unflatten(1, (8, 8)).movedim(-1, 1).numpy()
        coarse, *details = pywt.wavedec2(image, "haar", level=2)
        details = [tuple(gain * part for part in level) for gain, level in zip(gains[1:], details, strict=True)]
        wanted = torch.from_numpy(pywt.waverec2([gains[0] * coarse, *details], "haar")).movedim(1, -1).flatten(1, 2)
        torch.testing.assert_close(filter_bands(values, (8, 8), gains), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (1, 3), (12, 2)])
def test_bands_add_up_to_the_whole(grid: tuple[int, int]) -> None:
    values = torch.randn(1, grid[0] * grid[1], 2)
    eye = torch.eye(4)
    for coarser in range(5):
        total = sum(filter_bands(values, grid, gains, coarser) for gains in eye[: max(4 - coarser, 1)])
        torch.testing.assert_close(total, values, rtol=1e-5, atol=1e-5)


@every_host
def test_equal_gains_are_a_weight_and_bands_add_up(host: str) -> None:
    model = build(host)
    base = call(model, host)
    adapt(model)
    for name in FAMILIES:
        set_adapters(model, name, 0.5)
        wanted = call(model, host)
        set_adapters(model, name, AdapterWeight(0.5, bands=(1.0, 1.0, 1.0)))
        assert distance(call(model, host), wanted, base) < TOLERANCE


def test_bands_split_what_an_adapter_adds() -> None:
    """At one projection on image tokens the additions of the bands sum to the whole addition."""
    host, place = "flux", "transformer_blocks.0.attn.to_out.0"
    model = build(host)
    add_adapter(model, "a", "lora", rank=2, target_modules=[place])
    stir(find_adapter_set(model).parameters())
    seen: dict[Any, Tensor] = {}
    attention = model.get_submodule(place.rsplit(".", 2)[0])
    for bands in (None, (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        set_adapters(model, "a", AdapterWeight(bands=bands))
        with_hook = attention.register_forward_hook(lambda _, args, out, key=bands: seen.__setitem__(key, out[0]))
        call(model, host)
        with_hook.remove()
    set_adapters(model, [])
    with_hook = attention.register_forward_hook(lambda _, args, out: seen.__setitem__("base", out[0]))
    call(model, host)
    with_hook.remove()
    parts = [seen[bands] - seen["base"] for bands in seen if isinstance(bands, tuple)]
    torch.testing.assert_close(sum(parts), seen[None] - seen["base"], rtol=1e-4, atol=1e-5)
    assert all(float(part.norm()) > 1e-4 for part in parts)
