"""Weights that are more than a number: by scope, step, region, sample and band, alone and together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_adapters import (
    FAMILIES,
    AdapterWeight,
    add_adapter,
    delete_adapters,
    fuse_adapters,
    get_active_adapters,
    set_adapters,
    use_adapters,
)
from diffusion_adapters.bands import filter_bands
from diffusion_adapters.hooks import find_adapter_set
from diffusion_adapters.layout import IMAGE_ONLY, TEXT_FIRST
from diffusion_adapters.schedule import Schedules
from tests.denoisers import ZOO
from tests.hosts import HOSTS, TOLERANCE, adapt, build, distance, pipeline, run, sample, small, stir
from tests.pipelines import PIPELINES
from tests.pipelines import build as build_pipeline
from tests.pipelines import sample as sample_pipeline

every_host = pytest.mark.parametrize("host", HOSTS)
LEFT = np.zeros((8, 8), dtype=np.float32)
LEFT[:, :4] = 1


def call(model: Any, host: str, **changes: Any) -> Tensor:
    """The output of a host for its usual input, the batch in front."""
    torch.manual_seed(1)
    inputs = ZOO[host].inputs(model)
    with torch.no_grad():
        return model(**{**inputs, **changes}).sample


def two(host: str, **options: Any) -> Any:
    """A host with two stirred LoRA adapters, a and b."""
    model = build(host)
    for seed, name in enumerate("ab"):
        own = add_adapter(model, name, "lora", rank=2, **options)
        stir((v for adapter in own.of(name).values() for v in adapter.parameters()), seed=seed)
    return model


# ---- scopes ----------------------------------------------------------------------------------------------------------


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


# ---- samples ---------------------------------------------------------------------------------------------------------


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


# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_steps_are_those_of_the_pipeline(name: str) -> None:
    """On every base that can be trained: the weight at step i of n is that of the position i / n."""
    pipe = build_pipeline(name)
    denoiser = pipe.components.get("transformer") or pipe.components["unet"]
    add_adapter(denoiser, "pet", "lora", rank=1)
    set_adapters(pipe, "pet", AdapterWeight(schedule={0.0: 0.0, 1.0: 1.0}))
    blend = find_adapter_set(denoiser).blend
    seen: list[float] = []
    denoiser.register_forward_hook(lambda *_: seen.append(float(blend.gains(0, torch.empty(1))[0, 0])))
    sample_pipeline(pipe, name, "a cat", num_inference_steps=4)
    steps = sorted(set(seen))
    assert steps == pytest.approx([i / len(steps) for i in range(len(steps))], abs=1e-6)
    assert len(steps) >= 4
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", ["stable_diffusion", "sd3"])
def test_a_schedule_follows_sigma(name: str) -> None:
    pipe = build_pipeline(name)
    denoiser = pipe.components.get("transformer") or pipe.components["unet"]
    add_adapter(denoiser, "pet", "lora", rank=1)
    set_adapters(pipe, "pet", AdapterWeight(schedule=lambda sigma: sigma / (1 + sigma), by="sigma"))
    blend = find_adapter_set(denoiser).blend
    seen: list[float] = []
    denoiser.register_forward_hook(lambda *_: seen.append(float(blend.gains(0, torch.empty(1))[0, 0])))
    sample_pipeline(pipe, name, "a cat", num_inference_steps=4)
    scheduler = pipe.scheduler
    if getattr(scheduler, "sigmas", None) is not None:
        sigmas = scheduler.sigmas[:-1]
    else:
        kept = scheduler.alphas_cumprod[scheduler.timesteps]
        sigmas = ((1 - kept) / kept).sqrt()
    assert sorted(set(seen), reverse=True) == pytest.approx((sigmas / (1 + sigmas)).tolist(), abs=2e-3)


def test_start_and_end_are_those_of_a_control_net() -> None:
    pipe = pipeline()
    adapt(pipe.unet, ["lora"])
    blend = find_adapter_set(pipe.unet).blend
    seen: list[float] = []
    pipe.unet.register_forward_hook(lambda *_: seen.append(float(blend.gains(0, torch.empty(1))[0, 0])))
    for start, end, steps in ((0.2, 0.8, 10), (0.0, 1 / 3, 3), (0.5, 1.0, 7), (0.1, 0.3, 20)):
        set_adapters(pipe, "lora", AdapterWeight(0.5, start=start, end=end))
        seen.clear()
        sample(pipe, steps=steps, guidance_scale=1.0)
        kept = [1.0 - float(i / steps < start or (i + 1) / steps > end + 1e-9) for i in range(steps)]
        assert seen == [0.5 * k for k in kept], (start, end, steps)


def test_keyframes_are_joined_by_lines_and_held_at_the_ends() -> None:
    given = [AdapterWeight(schedule={0.2: 1.0, 0.6: 3.0}), AdapterWeight(schedule=lambda p: p * p), AdapterWeight()]
    schedules = Schedules(given)
    for position in (0.0, 0.2, 0.3, 0.6, 0.999):
        wanted = [float(np.interp(position, [0.2, 0.6], [1.0, 3.0])), position**2, 1.0]
        got = schedules(torch.tensor(position), torch.tensor(9.0))
        assert got.tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_schedule_needs_a_pipeline_and_the_right_one() -> None:
    pipe = pipeline()
    adapt(pipe.unet, ["lora"])
    with pytest.raises(ValueError, match=r"pass the pipeline to set_adapters\(\)"):
        set_adapters(pipe.unet, "lora", AdapterWeight(end=0.5))
    with pytest.raises(ValueError, match="is not a finite number"):
        set_adapters(pipe, "lora", AdapterWeight(schedule=lambda p: float("nan")))
    set_adapters(pipe, "lora", AdapterWeight(end=0.5))
    pipe.scheduler.set_timesteps(3)
    with pytest.raises(RuntimeError, match="none of the scheduler"):
        pipe.unet(torch.zeros(1, 4, 8, 8), 17, torch.zeros(1, 4, 16))


# ---- regions ---------------------------------------------------------------------------------------------------------


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


# ---- bands -----------------------------------------------------------------------------------------------------------


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


# ---- together --------------------------------------------------------------------------------------------------------


def test_all_five_combine() -> None:
    """Scopes, samples, a schedule, masks and bands at once equal their constants one sample at a time."""
    pipe = pipeline()
    model = pipe.unet
    for seed, family in enumerate(FAMILIES):
        own = add_adapter(model, family, family, **small(family))
        stir((v for adapter in own.of(family).values() for v in adapter.parameters()), seed=seed)
    pipe.scheduler.set_timesteps(4)
    names = list(FAMILIES)
    mixes = [[1.0, 0.3 * i] for i in range(len(names))]

    def weights(sample: int | None, step: float | None) -> list[AdapterWeight]:
        made = []
        for i in range(len(names)):
            parts: dict[str, Any] = {"scopes": {"attn1": 0.5, "to_k": 1.5}, "bands": (1.0, 0.2 * i, 0.5)}
            parts["mask"] = LEFT if i % 2 else None
            value = 0.9 - 0.1 * i
            if sample is None:
                made.append(AdapterWeight(value, samples=mixes[i], schedule={0.0: 1.0, 1.0: 0.2 * i}, **parts))
            else:
                at = 1.0 + (0.2 * i - 1.0) * float(step or 0)
                made.append(AdapterWeight(value * mixes[i][sample] * at, **parts))
        return made

    inputs = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 16)
    for i, t in enumerate(pipe.scheduler.timesteps):
        set_adapters(pipe, names, weights(None, None))
        with torch.no_grad():
            together = model(inputs[0], t, inputs[1]).sample
            for row in range(2):
                set_adapters(pipe, names, weights(row, i / 4))
                alone = model(inputs[0][row : row + 1], t, inputs[1][row : row + 1]).sample
                torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_for_a_while() -> None:
    pipe = pipeline()
    adapt(pipe.unet)
    before, picture = get_active_adapters(pipe), sample(pipe)
    with use_adapters(pipe, "lora", AdapterWeight(0.3, end=0.5, mask=LEFT)):
        assert list(get_active_adapters(pipe)) == ["lora"]
        inside = sample(pipe)

    def fails() -> None:
        with use_adapters(pipe, []):
            assert get_active_adapters(pipe) == {}
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert get_active_adapters(pipe) == before
    assert torch.equal(sample(pipe), picture)
    assert not torch.equal(inside, picture)


def test_what_varies_cannot_be_fused() -> None:
    model = two("flux")
    for weight in (AdapterWeight(mask=LEFT), AdapterWeight(samples=[1, 0]), AdapterWeight(bands=(1, 0))):
        set_adapters(model, "a", weight)
        with pytest.raises(RuntimeError, match="adapter 'a' depends on step, region, sample or band"):
            fuse_adapters(model)


def test_deleting_a_masked_adapter_leaves_the_base() -> None:
    model = two("sd3")
    base = build("sd3")
    set_adapters(model, ["a", "b"], [AdapterWeight(mask=LEFT), AdapterWeight(bands=(1, 0))])
    call(model, "sd3")
    delete_adapters(model, ["a", "b"])
    assert torch.equal(call(model, "sd3"), call(base, "sd3"))


@every_host
def test_gradients_pass_through_every_kind_of_weight(host: str) -> None:
    """As if the weights were in ΔW: of a per-sample mix, the mean of the gradients of its parts."""
    model = build(host)
    adapter_set = adapt(model, ["lora", "transformed_lora"])
    weights = [0.5, 0.8]
    gradients = []
    for given in (weights, [AdapterWeight(w, samples=[1.0, 1.0], mask=np.ones((2, 2))) for w in weights]):
        set_adapters(model, ["lora", "transformed_lora"], given)
        adapter_set.zero_grad()
        torch.manual_seed(1)
        model(**ZOO[host].inputs(model)).sample.square().sum().backward()
        gradients.append([p.grad.clone() for p in adapter_set.parameters() if p.grad is not None])
    for wanted, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


# ---- compiled --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


FEW = ["lora", "transformed_lora"]
"""One family that is low rank, and one that transforms its input: tracing takes long."""


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "host", [*(pytest.param(host, marks=pytest.mark.slow) for host in ("unet_sd15", "sd3")), "flux"]
)
def test_other_weights_of_every_kind_do_not_recompile(host: str) -> None:
    model = build(host)
    adapt(model, FEW, target_modules=["to_q"])
    names = FEW
    eager = build(host)
    adapt(eager, FEW, target_modules=["to_q"])
    set_adapters(model, names, AdapterWeight(mask=LEFT))
    call(model, host)  # of packed latents, the grid is read in a forward that is not compiled
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    def kinds(x: float) -> list[Any]:
        mask = np.full((8, 8), x, dtype=np.float32)
        return [
            [x] * len(names),
            [AdapterWeight(x, samples=[x, 0.5])] * len(names),
            [AdapterWeight(x, bands=(x, 1.0, 0.0))] * len(names),
            [AdapterWeight(x, mask=mask)] * len(names),
        ]

    for first, *others in zip(kinds(0.5), kinds(0.25), kinds(0.9), strict=True):
        set_adapters(eager, names, first)
        set_adapters(compiled, names, first)
        torch.testing.assert_close(call(eager, host), call(compiled, host), rtol=1e-4, atol=1e-5)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for weights in others:
                set_adapters(eager, names, weights)
                set_adapters(compiled, names, weights)
                torch.testing.assert_close(call(eager, host), call(compiled, host), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_schedules_are_followed_by_a_compiled_denoiser() -> None:
    pipe, other = pipeline(), pipeline()
    for one in (pipe, other):
        adapt(one.unet, FEW, target_modules=["to_q"])
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend="eager")
    names = FEW
    for i, frames in enumerate(({0.0: 1.0, 0.5: 0.0}, {0.3: -1.0, 0.7: 1.0, 0.8: 0.5})):
        for one in (pipe, other):
            set_adapters(one, names, AdapterWeight(schedule=frames, end=0.8))
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            torch.testing.assert_close(sample(pipe, steps=5), sample(other, steps=5), rtol=1e-4, atol=1e-5)
