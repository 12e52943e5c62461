"""What a run is refused for before anything is loaded; the estimate of memory against what a step really keeps."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPTextConfig

from tests.test_dreambooth import arguments, base, one_line, place  # noqa: F401
from train import dreambooth, memory, output, preflight
from train.bases import inspect_base, load_base
from train.bases.load import ROOT
from train.data import cache
from train.flags import parse
from train.tasks import attach, task_of

CPU = torch.device("cpu")


def configured(argv):
    config, adapter = parse(dreambooth.DreamBoothOptions, None, argv)
    info = inspect_base(config)
    return dreambooth.resolve(config, info), adapter, info


def estimated(argv, dtype=torch.float32):
    config, adapter, info = configured(argv)
    side = (config.resolution, config.resolution)
    objective = task_of(config).foreseen(config)
    return memory.estimate(
        info, config, lambda b: attach(task_of(config), config, adapter, b), objective, CPU, dtype, side
    )


def real_step(argv, dtype=torch.float32):
    """A function that does one forward of the loaded modules, and the adapters."""
    config, adapter, info = configured(argv)
    made = load_base(info, config, CPU, dtype)
    adapters = attach(task_of(config), config, adapter, made.denoiser, "x").float()
    adapters.set_weights(adapters.weights)
    if config.gradient_checkpointing:
        made.denoiser.enable_gradient_checkpointing()
    side = config.resolution
    told = {"moments": made.encode_image(torch.zeros(1, 3, side, side)), **made.encode_prompt(["a photo of sks cat"])}
    batch = memory._batch(told, config, (side, side))
    objective = task_of(config).foreseen(config)

    def forward():
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return objective(made, made.denoiser, adapters, batch)[0]

    return forward, adapters, sum(value.numel() * value.element_size() for value in batch.values())


def kept_bytes(forward):
    """Bytes that autograd saves for the backward, each storage once, without those that were there before."""
    alive = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and not t.is_meta]
    before = {t.untyped_storage()._cdata for t in alive}  # held, so that no new storage takes the place of one
    saved = {}

    def pack(value):
        if value.untyped_storage()._cdata not in before:
            saved.setdefault(value.untyped_storage()._cdata, value)
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        forward()
    return sum(value.untyped_storage().nbytes() for value in saved.values())


@pytest.mark.parametrize(("family", "dtype"), [("lora", torch.float32), ("wara", torch.bfloat16)])
def test_the_estimate_is_what_a_real_step_keeps_to_the_byte(base, place, family, dtype):  # noqa: F811
    argv = arguments(base, "--adapter", family, "--rank", "2", "--train_batch_size", "2")
    foreseen = estimated(argv, dtype)
    forward, adapters, rows = real_step(argv, dtype)
    kept = kept_bytes(forward)
    assert kept > 100_000
    assert abs(foreseen.kept - kept) <= 64  # the scalars that the loss is made of live on besides what is saved
    assert foreseen.adapter == sum(v.numel() * 4 for v in (*adapters.parameters(), *adapters.buffers()))
    assert foreseen.optimizer == sum(v.numel() * 8 for v in adapters.parameters())
    with memory.LiveBytes() as real:
        forward().backward()
    assert abs(foreseen.step - rows - real.peak) <= 64
    assert foreseen.step > foreseen.kept


def test_gradient_checkpointing_and_prior_preservation_are_foreseen(base, place):  # noqa: F811
    argv = arguments(base, "--adapter", "lora", "--rank", "2", "--train_batch_size", "2")
    whole, less = estimated(argv), estimated([*argv, "--gradient_checkpointing"])
    assert less.kept < whole.kept / 3
    forward, _, rows = real_step([*argv, "--gradient_checkpointing"])
    with memory.LiveBytes() as real:
        forward().backward()
    assert abs(less.step - rows - real.peak) <= 64
    twice = estimated([*argv, "--with_prior_preservation", "--class_prompt", "a cat", "--prior_source", "teacher"])
    assert 1.9 * whole.kept < twice.kept < 2.2 * whole.kept
    assert twice.base == whole.base


@pytest.mark.parametrize("encoder", ["denoiser", "pipelines/pocket/encoder"])
def test_a_step_on_all_domains_is_foreseen(base, place, encoder):  # noqa: F811
    encoder = str(Path(ROOT, encoder)) if "/" in encoder else encoder
    argv = arguments(base, "--adapter", "hybrid", "--rank", "2", "--train_batch_size", "2", "--encoder", encoder)
    foreseen = estimated(argv)
    forward, _, rows = real_step(argv)
    with memory.LiveBytes() as real:
        forward().backward()
    assert abs(foreseen.step - rows - real.peak) <= 64
    alone = estimated(arguments(base, "--adapter", "lora", "--rank", "2", "--train_batch_size", "2"))
    assert foreseen.step > 1.2 * alone.step


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Stable Diffusion 1.5 without its weights: configurations alone."""
    folder = tmp_path_factory.mktemp("large")
    pocket = ROOT / "pipelines" / "pocket"
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(pocket / part, folder / part)
    (folder / "model_index.json").write_text(json.dumps(json.loads((pocket / "model_index.json").read_text())))
    with torch.device("meta"):
        UNet2DConditionModel(sample_size=64, cross_attention_dim=768).save_config(folder / "unet")
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
        AutoencoderKL(**widths, **blocks, sample_size=512).save_config(folder / "vae")
    CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    ).save_pretrained(folder / "text_encoder")
    return folder


def test_stable_diffusion_is_foreseen_without_its_weights(large, place, capsys, monkeypatch):  # noqa: F811
    argv = ["--pretrained_model_name_or_path", str(large), "--instance_data_dir", "cat", "--adapter", "lora"]
    needed = estimated([*argv, "--gradient_checkpointing"], torch.bfloat16)
    assert needed.base == pytest.approx(2 * 1_066e6, rel=0.01)  # 860 M UNet, 123 M text encoder, 84 M VAE
    assert needed.adapter == pytest.approx(4 * 797_184, rel=0.01)  # LoRA of rank 4 in every attention
    assert 0.2 * 2**30 < needed.step < 0.7 * 2**30
    monkeypatch.setattr(dreambooth, "load_base", lambda *_: pytest.fail("the base was loaded"))
    monkeypatch.setattr(memory, "estimate", lambda *_: dataclasses.replace(needed, base=2 * needed.base))
    monkeypatch.setattr(preflight, "free", lambda *_: 4 * 2**30)
    said = one_line(capsys, *argv, "--train_batch_size", "2")
    assert said.startswith("memory: 4.3 GiB (base 4.0 GiB, adapter 3 MiB, optimizer 6 MiB, step ")
    assert "needed, 4.0 GiB free on cpu; keep the denoiser in few bits by --quantization; use --gradient_check" in said
    assert said.endswith("lower --resolution 512; --skip_preflight tries it all the same")
    assert not Path("dreambooth-lora").exists()

    def loaded(*_):
        raise KeyError("loaded")

    monkeypatch.setattr(dreambooth, "load_base", loaded)
    with pytest.raises(KeyError, match="loaded"):
        dreambooth.main([*argv, "--skip_preflight"])


def test_a_small_base_needs_no_closer_look_and_a_strange_one_is_trained_all_the_same(base, place, capsys, monkeypatch):  # noqa: F811
    run = arguments(base, "--adapter", "lora", "--num_validation_images", "0", "--checkpointing_steps", "0")
    monkeypatch.setattr(memory, "estimate", lambda *_: pytest.fail("looked closer"))
    assert dreambooth.main(run) == 0
    assert "Memory: " in capsys.readouterr().out

    def strange(*_):
        raise RuntimeError("a step that depends\non numbers")

    monkeypatch.setattr(memory, "estimate", strange)
    monkeypatch.setattr(preflight, "free", lambda *_: 2**20)
    assert dreambooth.main([*run, "--output_dir", "other"]) == 0
    assert "1 MiB free on cpu; a step could not be foreseen (a step that depends on numbers)" in capsys.readouterr().out


def test_the_disk_holds_checkpoints_and_their_state():
    @dataclasses.dataclass
    class Options:
        checkpointing_steps: int = 100
        checkpoints_total_limit: int | None = None
        max_train_steps: int = 1000
        use_ema: bool = False

    assert preflight.disk(Options(), 10) == 2 * 10 + 10 * 4 * 10
    assert preflight.disk(Options(checkpoints_total_limit=2), 10) == 2 * 10 + 3 * 4 * 10
    assert preflight.disk(Options(checkpointing_steps=0), 10) == 2 * 10
    assert preflight.disk(Options(use_ema=True), 10) == 2 * 10 + 10 * 6 * 10


def test_the_disk_of_a_cache_is_looked_at_too(base, place, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(dreambooth, "load_base", lambda *_: pytest.fail("the base was loaded"))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 0, 2**20))
    monkeypatch.setattr(output, "prepare", lambda *_: None)
    said = one_line(capsys, *arguments(base, "--latents_cache_dir", "cache"))
    assert said.startswith("--latents_cache_dir cache: 2 MiB needed, 1 MiB free; free some space, choose another")
    assert not (place / "cache").exists()


def test_flags_that_contradict_each_other_are_refused(base, place, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(dreambooth, "load_base", lambda *_: pytest.fail("the base was loaded"))
    said = one_line(capsys, *arguments(base, "--validation_steps", "2", "--validation_epochs", "1"))
    assert said == "--validation_steps and --validation_epochs both say when to look; give one of them"


def test_free_memory_is_the_least_of_machine_and_container(monkeypatch):
    whole = preflight.free(CPU)
    assert 0 < preflight.free(CPU, 2) <= whole
    monkeypatch.setattr(preflight, "_number", lambda path: {"memory.max": 100, "memory.current": 40}[path.name])
    assert (preflight.free(CPU), preflight.free(CPU, 2)) == (60, 30)
    assert (memory.show(3 * 2**20), memory.show(1.5 * 2**30)) == ("3 MiB", "1.5 GiB")
