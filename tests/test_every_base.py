"""Every base through the script: trained, stopped, resumed, and then sampled with the stock pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusion_adapters import FAMILIES, load_adapter
from tests.pipelines import LENGTH, PIPELINES, SIDE, sample
from train import checkpoint
from train.bases import BaseOptions, inspect_base, load_base
from train.dreambooth import DreamBoothOptions, run

PROMPT = "a photo of sks cat"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures, neither square nor of the side that is trained at."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate([(90, 70), (64, 100)]):
        Image.linear_gradient("L").resize(size).rotate(180 * i).convert("RGB").save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", PIPELINES)
def test_it_trains_stops_resumes_and_is_sampled_by_the_stock_pipeline(
    tmp_path, tiny_folder, pictures, name, monkeypatch
):
    monkeypatch.setattr("train.report.loss_plot", lambda records, path: path.touch())  # a second each
    base, out = tiny_folder(name), tmp_path / "cat"
    adapter = FAMILIES["lora"].Config(rank=2)
    options = {
        "pretrained_model_name_or_path": str(base),
        "instance_data_dir": pictures,
        "instance_prompt": PROMPT,
        "output_dir": out,
        "adapter": "lora",
        "resolution": SIDE,
        "learning_rate": 3e-2,
        "max_train_steps": 3,
        "num_validation_images": 0,
        "num_inference_steps": 1,
        "validation_prompt": (PROMPT,),
    }
    if "max_sequence_length" in inspect_base(DreamBoothOptions(**options)).kind.takes:
        options["max_sequence_length"] = LENGTH
    first = list(run(DreamBoothOptions(**options), adapter, stop=lambda: True))
    assert [record["step"] for record in first] == [1]
    assert list(checkpoint.steps(out)) == [1]
    options |= {"resume_from_checkpoint": "latest", "num_validation_images": 1}
    second = list(run(DreamBoothOptions(**options), adapter))
    assert [record["step"] for record in second] == [2, 3]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in first + second)

    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    before = sample(pipeline, name, PROMPT)
    load_adapter(pipeline, out / "adapter.safetensors")
    with torch.no_grad():
        after = sample(pipeline, name, PROMPT)
    assert np.isfinite(after).all()
    assert abs(after - before).max() > 1e-3


@pytest.mark.parametrize("name", PIPELINES)
def test_it_runs_in_bf16_and_gradients_reach_every_text_encoder(tiny_folder, name):
    options = BaseOptions(pretrained_model_name_or_path=str(tiny_folder(name)))
    base = load_base(inspect_base(options), options, torch.device("cpu"), torch.bfloat16)
    assert not any(parameter.requires_grad for part in base.text_encoders.values() for parameter in part.parameters())
    for encoder in base.text_encoders.values():
        encoder.requires_grad_(True)
    said = base.encode_prompt([PROMPT])
    sum(value.float().square().sum() for value in said.values() if value.requires_grad).backward()
    for where, encoder in base.text_encoders.items():
        assert any(p.grad is not None and p.grad.any() for p in encoder.parameters()), where
    batch = {
        "moments": base.encode_image(torch.rand(1, 3, SIDE, SIDE)).float(),
        "seeds": torch.zeros(1, dtype=torch.long),
        "spread": torch.full((1,), 0.4),
        "sizes": torch.full((1, 6), SIDE),
        **{key: value.detach() for key, value in said.items()},
    }
    made = base.predict(base.denoiser, batch)
    assert made.prediction.dtype == torch.bfloat16
    assert made.target.dtype == torch.float32
    assert torch.isfinite(made.prediction).all()
