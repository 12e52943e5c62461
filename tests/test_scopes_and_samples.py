"""Weights by component, block and projection, and for each sample of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_adapters import FAMILIES, AdapterWeight, fuse_adapters, get_active_adapters, set_adapters
from tests.hosts import HOSTS, TOLERANCE, adapt, build, call, distance, pipeline, run, sample, two

every_host = pytest.mark.parametrize("host", HOSTS)


@every_host
def test_scopes_weigh_whole_segments_and_the_longest_wins(host: str) -> None:
    model = build(host)
    base = run(model, host)
    adapter_set = adapt(model)
    component = adapter_set.component
    block = next(iter(adapter_set.projections())).rpartition(".")[0]
    scopes = {component: 0.5, block: -1.0, "to_k": 0.0, f"{block}.to_v": 2.0}
    set_adapters(model, list(FAMILIES), AdapterWeight(0.8, scopes=scopes))

    def wanted(path: str) -> float:
        found = [key for key in scopes if f".{key}." in f".{component}.{path}."]
        return 0.8 * scopes[max(found, key=lambda key: (key.count("."), list(scopes).index(key)))]

    dense = build(host)
    with torch.no_grad():
        for path in adapter_set.projections():
            weight = dense.get_submodule(path).weight
            weight += sum(wanted(path) * adapter_set.of(name)[path].delta_weight(weight) for name in FAMILIES)
    assert distance(run(model, host), run(dense, host), base) < TOLERANCE
    fuse_adapters(model)
    assert distance(run(model, host), run(dense, host), base) < TOLERANCE


def test_a_mapping_is_scopes_unless_it_names_adapters() -> None:
    model = two("flux")
    set_adapters(model, ["a", "b"], {"a": 0.5, "b": {"to_q": 0.0}})
    active = get_active_adapters(model)
    assert active["a"] == 0.5
    assert isinstance(active["b"], AdapterWeight)
    assert active["b"].scopes == {"to_q": 0.0}
    set_adapters(model, "a", {"transformer_blocks": 0.25})
    assert get_active_adapters(model)["a"].scopes == {"transformer_blocks": 0.25}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        ({"to_qq": 1.0}, "unknown scope 'to_qq'.*to_q"),
        ({"blocks": 1.0}, "unknown scope 'blocks'"),
        ({"to_q": float("nan")}, r"scopes\['to_q'\] must be a finite number"),
        ("strong", "the weight of adapter 'a' must be a finite number, got 'strong'"),
        (True, "must be a finite number"),
    ],
)
def test_what_is_no_weight_changes_nothing(weight: Any, text: str) -> None:
    model = two("flux")
    set_adapters(model, "a", 0.5)
    before = run(model, "flux")
    with pytest.raises(ValueError, match=text):
        set_adapters(model, ["a"], [weight])
    assert get_active_adapters(model) == {"a": 0.5}
    assert torch.equal(run(model, "flux"), before)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"start": 0.5, "end": 0.5}, "start < end"),
        ({"end": 1.5}, "end <= 1"),
        ({"by": "time"}, "'step' or 'sigma', got 'time'"),
        ({"by": "sigma"}, "by='sigma' is for a schedule"),
        ({"schedule": {}}, "schedule is empty"),
        ({"schedule": {1.5: 1.0}}, r"position 1.5 is outside of \[0, 1.0\]"),
        ({"schedule": {0.0: float("inf")}}, "must be a finite number"),
        ({"samples": []}, "at least 1"),
        ({"bands": [1.0]}, "at least 2"),
        ({"mask": np.full((2, 2), 1.5)}, r"values in \[0, 1\], got 1.5"),
        ({"mask": np.zeros((2, 2, 3))}, r"shape \(h, w\), got \(2, 2, 3\)"),
    ],
)
def test_a_weight_says_what_is_wrong_with_it(parts: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AdapterWeight(1.0, **parts)


def test_a_mask_is_a_picture_or_an_array() -> None:
    picture = Image.new("L", (6, 4))
    picture.paste(255, (0, 0, 3, 4))
    for mask in (picture, picture.convert("RGB"), np.asarray(picture) / 255, torch.tensor(np.asarray(picture) / 255)):
        own = AdapterWeight(mask=mask).mask
        assert own.shape == (4, 6)
        assert own[:, :3].min() == 1
        assert own[:, 3:].max() == 0
    with pytest.raises(TypeError, match="PIL image or an array"):
        AdapterWeight(mask="left.png")


@every_host
def test_each_sample_has_its_own_mix(host: str) -> None:
    model = build(host)
    adapt(model)
    names = list(FAMILIES)
    mixes = [[1.0 - 0.2 * i, 0.1 * i] for i in range(len(names))]
    set_adapters(model, names, [AdapterWeight(0.7, samples=mix) for mix in mixes])
    together = call(model, host)
    for i in range(2):
        set_adapters(model, names, [0.7 * mix[i] for mix in mixes])
        torch.testing.assert_close(together[i], call(model, host)[i], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], call(model, host)[0], rtol=1e-2)  # the mixes do differ


def test_samples_are_repeated_for_guidance() -> None:
    pipe = pipeline()
    adapt(pipe.unet, ["lora"])
    kind = {"num_images_per_prompt": 2, "guidance_scale": 3.0, "latents": torch.randn(2, 4, 8, 8)}
    set_adapters(pipe, "lora", AdapterWeight(samples=[1.0, 0.25]))
    both = sample(pipe, **kind)
    for i, weight in enumerate((1.0, 0.25)):
        set_adapters(pipe, "lora", weight)
        torch.testing.assert_close(both[i], sample(pipe, **kind)[i], rtol=1e-4, atol=1e-5)


def test_samples_must_divide_the_batch_and_agree() -> None:
    model = two("flux")
    set_adapters(model, "a", AdapterWeight(samples=[1.0, 0.5, 0.2]))
    with pytest.raises(RuntimeError, match="samples has 3 numbers, which does not divide the batch of 2"):
        call(model, "flux")
    with pytest.raises(ValueError, match="one number for each image"):
        set_adapters(model, ["a", "b"], [AdapterWeight(samples=[1, 1]), AdapterWeight(samples=[1, 1, 1])])
