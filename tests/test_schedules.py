"""Weights by denoising step and by sigma."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_adapters import AdapterWeight, add_adapter, set_adapters
from diffusion_adapters.hooks import find_adapter_set
from diffusion_adapters.schedule import Schedules
from tests.hosts import adapt, pipeline, sample
from tests.pipelines import PIPELINES
from tests.pipelines import build as build_pipeline
from tests.pipelines import sample as sample_pipeline


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
