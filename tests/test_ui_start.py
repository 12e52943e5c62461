"""What makes the app ready sooner: what is left out of its start, and that nothing is missing for it."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import AutoPipelineForImage2Image, StableDiffusionPipeline
from diffusers.pipelines import auto_pipeline

pytest.importorskip("gradio")

import gradio as gr

from diffusion_adapters.cli.common import POCKET
from tests.tiny import save_pipeline
from ui.bases import Base, LoadedBase
from ui.relatives import named
from ui.start import STUBS, Stubless, uncollected

LATER = ("torchmetrics", "matplotlib", "sklearn", "diffusers.training_utils", "diffusers.pipelines.auto_pipeline")
"""What takes long to import, and is not needed before somebody asks for scores, plots or a training."""


def test_the_page_does_without_what_takes_long_to_import() -> None:
    code = f"import sys, ui.start; ui.start.without_stubs(); import ui.app; print(set({LATER}) & set(sys.modules))"
    root = Path(__file__).parents[1]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "set()"


def test_gradio_leaves_its_stubs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Stubless().find_spec("gradio.components", list(gr.__path__)) is None
    spec = Stubless().find_spec(STUBS[0], list(gr.__path__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    assert callable(getattr(sys.modules[STUBS[0]], STUBS[1]))  # by the name that is replaced
    monkeypatch.setattr(Path, "write_text", None)
    monkeypatch.setattr(Path, "read_text", None)
    spec.loader.exec_module(module)
    assert callable(module.ComponentMeta("Own", (), {"EVENTS": ["click"]}).click)


def test_garbage_is_looked_for_again_afterwards() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()
    with pytest.raises(ValueError, match="x"), uncollected():
        raise ValueError("x")
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_the_pipeline_that_draws_from_a_picture_is_the_one_of_diffusers(tmp_path: Path) -> None:
    for name, kind in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items():
        found, known = named(kind), auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.get(name)
        assert None in (found, known) or found is known, name
    for base in (Base.of(None), Base.of(str(save_pipeline(tmp_path / "tiny")))):
        loaded = LoadedBase.load(base)
        known = AutoPipelineForImage2Image.from_pipe(loaded.pipe)
        assert type(loaded.from_image) is type(known)
        assert loaded.from_image.components == known.components
        assert loaded.from_image.config["requires_safety_checker"] == known.config["requires_safety_checker"]
    loaded.pipe = type("Own", (StableDiffusionPipeline,), {}).from_pretrained(POCKET)
    del loaded.from_image
    assert loaded.from_image is None
