"""Bases are data: a pipeline whose numbers are a pickle is refused with the file, and nothing of it is run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from diffusion_adapters.cli.common import load_base
from tests.test_hostile import Bomb
from tests.tiny import save_pipeline
from train.bases import BaseOptions, inspect_base
from train.bases import load_base as load_for_training


@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")])
def test_a_pickled_base_is_refused(part: str, stem: str, tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "base")
    options = BaseOptions(pretrained_model_name_or_path=str(folder))
    assert load_base(str(folder)).device.type == "cpu"
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    (folder / part / f"{stem}.bin").write_bytes(pickle.dumps(Bomb()))
    words = rf"{part}/{stem}\.bin in .*: a pickle can run code when read and is never loaded; take a version"
    with pytest.raises(ValueError, match=words):
        load_base(str(folder))
    with pytest.raises(ValueError, match=words):
        load_for_training(inspect_base(options), options, torch.device("cpu"), torch.float32)
