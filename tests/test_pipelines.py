"""The tiny pipelines that tests train: each samples by its stock class, listens to the prompt, and survives a save."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from tests.pipelines import PIPELINES, SIDE, build, sample

PROMPT, OTHER = "a photo of sks cat", "a red desert under water"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_tiny_pipeline_samples_and_loads(tmp_path, name):
    pipeline = build(name)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipeline)
    picture = sample(pipeline, name, PROMPT)
    assert picture.shape == (SIDE, SIDE, 3)
    assert picture.std() > 0.01
    np.testing.assert_allclose(sample(loaded, name, PROMPT), picture, atol=1e-5)
    assert np.abs(sample(loaded, name, OTHER) - picture).max() > 1e-3
