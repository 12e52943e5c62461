"""Weights by region: each part of a picture is that of its adapter, wherever a denoiser keeps image tokens."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_adapters import FAMILIES, AdapterWeight, get_active_adapters, set_adapters
from diffusion_adapters.hooks import find_adapter_set
from diffusion_adapters.layout import IMAGE_ONLY, TEXT_FIRST
from tests.denoisers import ZOO
from tests.hosts import HOSTS, LEFT, TOLERANCE, adapt, build, call, distance, two

every_host = pytest.mark.parametrize("host", HOSTS)


@every_host
def test_a_whole_mask_is_none_and_an_empty_one_the_base(host: str) -> None:
    model = build(host)
    base = call(model, host)
    adapt(model)
    names = list(FAMILIES)
    wanted = call(model, host)
    weights = get_active_adapters(model)
    set_adapters(model, names, {n: AdapterWeight(w, mask=np.ones((4, 4))) for n, w in weights.items()})
    assert distance(call(model, host), wanted, base) < TOLERANCE
    set_adapters(model, names, {n: AdapterWeight(w, mask=np.zeros((4, 4))) for n, w in weights.items()})
    torch.testing.assert_close(call(model, host), base, rtol=1e-5, atol=1e-6)


def attentions(model: nn.Module, host: str, weights: Any) -> dict[str, Any]:
    """What each attention of a host gives, as if all before it were the base's: its input is that of the base."""
    inputs: dict[str, Any] = {}
    sites = find_adapter_set(model).sites
    hooks = [
        site.attention.register_forward_pre_hook(
            lambda _, args, kwargs, path=path: inputs.setdefault(path, (args, kwargs)), with_kwargs=True
        )
        for path, site in sites.items()
    ]
    set_adapters(model, [])
    call(model, host)
    for hook in hooks:
        hook.remove()
    set_adapters(model, list(weights), weights)
    call(model, host)  # tells the grid
    with torch.no_grad():
        found = {path: sites[path].attention(*args, **kwargs) for path, (args, kwargs) in inputs.items()}
    return {path: value if isinstance(value, tuple) else (value,) for path, value in found.items()}


LAYOUTS = [name for name, row in ZOO.items() if row.cls in TEXT_FIRST + IMAGE_ONLY and name != "unet_gligen"]


@pytest.mark.parametrize("host", LAYOUTS)
def test_the_image_is_where_the_layout_says(host: str) -> None:
    """Without values attention mixes no tokens: then those that change with the latents are the image."""
    model = two(host)
    set_adapters(model, ["a", "b"], AdapterWeight(mask=LEFT))
    for path, projection in find_adapter_set(model).projections().items():
        if re.search(r"(to|add|to_added)_?(v|v_proj|qkv|kv|qkv_mlp_proj)$", path):
            nn.init.zeros_(projection.base.weight)
            if projection.base.bias is not None:
                nn.init.zeros_(projection.base.bias)
    set_adapters(model, [])
    set_adapters(model, ["a"], AdapterWeight(1e-30, mask=LEFT))
    torch.manual_seed(1)
    inputs = ZOO[host].inputs(model)
    first = next(iter(inputs))
    seen: list[dict[str, Tensor]] = []
    for latents in (inputs[first], inputs[first] + 1):
        seen.append({})
        hooks = [
            site.attention.register_forward_pre_hook(
                lambda _, args, kwargs, path=path: seen[-1].update({path: (*args, *kwargs.values())[0]}),
                with_kwargs=True,
            )
            for path, site in find_adapter_set(model).sites.items()
        ]
        call(model, host, **{first: latents})
        for hook in hooks:
            hook.remove()
    checked = 0
    adapter_set = find_adapter_set(model)
    for path, before in seen[0].items():
        if before.ndim != 3:
            continue
        changed = (before != seen[1][path]).any(-1).any(0)
        place, _, _ = adapter_set.blend.layout.image(path, before.shape[1], adapter_set.sites[path].stream)
        wanted = torch.zeros_like(changed)
        wanted[place] = True
        assert torch.equal(changed, wanted), path
        checked += 1
    assert checked or all(before.ndim == 4 for before in seen[0].values())


@pytest.mark.parametrize("host", LAYOUTS)
def test_each_region_of_an_attention_is_that_of_its_adapter(host: str) -> None:
    model = two(host)
    alone = {name: attentions(model, host, {name: 1.0}) for name in "ab"}
    masks = {"a": AdapterWeight(mask=LEFT), "b": AdapterWeight(mask=1 - LEFT)}
    composed = attentions(model, host, masks)
    grid = find_adapter_set(model).blend.layout.grid
    assert grid is not None
    assert grid[0] > 1
    checked = 0
    for path, outputs in composed.items():
        for part, output in enumerate(outputs):
            a, b = alone["a"][path][part], alone["b"][path][part]
            if output is None:
                continue
            if output.ndim == 4:  # (batch, channels, h, w)
                a, b, output = (value.flatten(2).transpose(1, 2) for value in (a, b, output))
            if part == 0:
                text = max(output.shape[1] - grid[0] * grid[1], 0)
                text_a, text_b, text_c = (value[:, :text] for value in (a, b, output))
                rows, columns = grid
                while rows * columns > output.shape[1] - text:
                    rows, columns = -(-rows // 2), -(-columns // 2)
                a, b, output = (value[:, text:].unflatten(1, (rows, columns)) for value in (a, b, output))
                half = columns // 2
                torch.testing.assert_close(output[:, :, :half], a[:, :, :half], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(output[:, :, half:], b[:, :, half:], rtol=1e-4, atol=1e-5)
                assert not torch.allclose(a[:, :, :half], b[:, :, :half], rtol=1e-3)
                checked += 1
            else:
                text_a, text_b, text_c = a, b, output
            torch.testing.assert_close(text_c, (text_a + text_b) / 2, rtol=1e-4, atol=1e-5)
    assert checked


def test_an_adapter_without_mask_acts_everywhere() -> None:
    host = "sd3"
    model = two(host)
    both, b = attentions(model, host, {"a": 1.0, "b": 1.0}), attentions(model, host, {"b": 1.0})
    composed = attentions(model, host, {"a": AdapterWeight(mask=LEFT), "b": 1.0})
    rows, columns = find_adapter_set(model).blend.layout.grid
    for path, (image, *_) in composed.items():
        got, inside, outside = (v.unflatten(1, (rows, columns)) for v in (image, both[path][0], b[path][0]))
        half = columns // 2
        torch.testing.assert_close(got[:, :, :half], inside[:, :, :half], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[:, :, half:], outside[:, :, half:], rtol=1e-4, atol=1e-5)


def test_a_denoiser_of_unknown_layout_refuses_masks() -> None:
    model = two("lumina2")
    set_adapters(model, "a", AdapterWeight(mask=LEFT))
    with pytest.raises(RuntimeError, match="cannot tell which of its"):
        call(model, "lumina2")
