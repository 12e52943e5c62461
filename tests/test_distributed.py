"""Several processes: the same run as one with the larger batch, exact resumption, one voice, one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from PIL import Image

from diffusion_adapters.file import read_adapter
from tests import forked, test_resume
from tests.test_resume import go, same
from tests.tiny import save_pipeline
from train import checkpoint, zero
from train.bases import sample
from train.launch import missing
from train.processes import make_accelerator
from train.settings import TrainOptions

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "train" / "configs" / "accelerate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("tiny") / "tiny")


def launch(folder, output, processes=2, **options):
    """Run in so many processes; what each of them ended with."""

    def work():
        found = go(folder, output, **options)
        forked.save(found, output.with_name(f"{output.name}.{os.environ.get('RANK', '0')}"))

    forked.run(work, output.with_name(f"{output.name}-said"), processes)
    return [torch.load(output.with_name(f"{output.name}.{rank}"), weights_only=True) for rank in range(processes)]


def test_two_processes_are_one_with_twice_the_batch(folder, tmp_path):
    """Within 1e-4 of the largest value, of fp32 sums in another order; the samples and noises are the same."""
    options = {"gradient_accumulation_steps": 2, "max_train_steps": 3, "use_ema": True}
    first, second = launch(folder, tmp_path / "two", train_batch_size=2, **options)
    same(first, second)
    (one,) = launch(folder, tmp_path / "one", 1, train_batch_size=4, **options)
    for name, value in one[0].items():
        torch.testing.assert_close(first[0][name], value, rtol=0, atol=1e-4 * float(value.abs().max()))
    for mine, theirs in zip(first[1], one[1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    changed, _ = launch(folder, tmp_path / "other", train_batch_size=2, **options | {"seed": 1})
    assert first[1] != changed[1]


def test_two_processes_go_on_exactly(folder, tmp_path):
    options = {"gradient_accumulation_steps": 2, "train_batch_size": 2, "use_ema": True, "lr_scheduler": "cosine"}
    whole = launch(folder, tmp_path / "whole", **options)

    def stop():  # one of the two is asked, both stop
        calls.append(1)
        return os.environ["RANK"] == "1" and len(calls) == 3

    calls = []
    launch(folder, tmp_path / "parts", **options, stop=stop)
    assert list(checkpoint.steps(tmp_path / "parts")) == [2, 3]
    resumed = launch(folder, tmp_path / "parts", **options, resume_from_checkpoint="latest")
    for one, other in zip(whole, resumed, strict=True):
        same(one, other)


def sharding(options):
    """The accelerator of fsdp.yaml, which accelerate itself makes for GPUs alone."""
    accelerator = make_accelerator(options)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=True, auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
    )  # fmt: skip
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def test_fsdp_shares_the_base_and_trains_the_same_adapter(folder, tmp_path, monkeypatch):
    options = {"gradient_accumulation_steps": 2, "use_ema": True}

    def look(trainer):
        shared = [type(value).__name__ == "DTensor" for value in trainer.base.denoiser.parameters()]
        assert all(shared) == (trainer.accelerator.distributed_type == DistributedType.FSDP)
        with trainer.inference():  # a forward outside the loop, on every process
            sample(trainer.base, ["a photo of sks cat"], [3], steps=1, guidance_scale=2.0, side=16)
        assert all(type(value).__name__ == "Parameter" for value in trainer.adapters.parameters())

    whole, _ = launch(folder, tmp_path / "whole", between=look, **options)
    monkeypatch.setattr(test_resume, "make_accelerator", sharding)
    first, second = launch(folder, tmp_path / "shared", between=look, **options, stop=lambda: False)
    same(first, second)
    for name, value in whole[0].items():
        torch.testing.assert_close(first[0][name], value, rtol=0, atol=1e-4 * float(value.abs().max()))
    again, _ = launch(folder, tmp_path / "shared", **options, resume_from_checkpoint="checkpoint-2")
    same(first, again)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "device"), [(2, "none"), (3, "none"), (3, "cpu")])
def test_deepspeed_shares_the_base_and_trains_the_same_adapter(folder, tmp_path, monkeypatch, stage, device):
    """On the CPU, where deepspeed compiles its own exchange of tensors first; the state is resumed without it too."""
    pytest.importorskip("deepspeed")
    options = {"gradient_accumulation_steps": 2, "use_ema": True}

    def look(trainer):
        shared = [hasattr(value, "ds_tensor") and value.numel() == 0 for value in trainer.base.denoiser.parameters()]
        assert any(shared) == (stage == 3 and trainer.accelerator.zero is not None)
        with trainer.inference():
            sample(trainer.base, ["a photo of sks cat"], [3], steps=1, guidance_scale=2.0, side=16)
        assert all(value.numel() and value.dtype == torch.float32 for value in trainer.parameters)

    whole, _ = launch(folder, tmp_path / "whole", between=look, **options)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    told = {"stage": stage, "offload_param": {"device": device}, "stage3_param_persistence_threshold": 0}
    (tmp_path / "deepspeed.json").write_text(json.dumps({"zero_optimization": told}))  # a small one would stay whole
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "deepspeed.json"))
    first, second = launch(folder, tmp_path / "shared", between=look, **options)
    same(first, second)
    for name, value in whole[0].items():
        torch.testing.assert_close(first[0][name], value, rtol=0, atol=1e-4 * float(value.abs().max()))
    again, _ = launch(folder, tmp_path / "shared", between=look, **options, resume_from_checkpoint="checkpoint-2")
    same(first, again)


def test_deepspeed_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(zero, "is_deepspeed_available", lambda: False)
    assert zero.asked_for() is None
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="accelerate launch with DeepSpeed needs the package deepspeed: pip install"):
        make_accelerator(TrainOptions())


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.glob("*.yaml")])
def test_configurations_are_ones_that_accelerate_reads(name):
    config = load_config_from_file(str(CONFIGS / name))
    text = (CONFIGS / name).read_text()
    assert f"--config_file train/configs/accelerate/{name}" in text
    assert config.distributed_type.value in text
    assert {*config.fsdp_config, *config.deepspeed_config} <= {
        action.dest for action in launch_command_parser()._actions
    }


@pytest.mark.parametrize("flags", [["--num_processes", "2", "--cpu"], ["--config_file", str(CONFIGS / "cpu_2.yaml")]])
def test_what_the_launcher_leaves_out_on_the_cpu(flags):
    """However it was called, and only where it was."""
    for name in (["/bin/accelerate", "launch"], ["accelerate-launch"], ["-m", "accelerate.commands.launch"]):
        found = missing(["python", *name, *flags, "train/dreambooth.py", "--rank", "2"])
        assert found[:2] == ["--nproc_per_node", "2"]
        assert found[-3:] == ["train/dreambooth.py", "--rank", "2"]
        assert missing(["python", *name, *flags, "--num_processes", "1", "train/dreambooth.py"]) == []
        assert missing(["python", *name, *flags, "--mpirun_hostfile", "hosts", "train/dreambooth.py"]) == []
    assert missing(["python", "-m", "accelerate.commands.launch", *flags, "-m", "train.dreambooth"])[-2:] == [
        "--module", "train.dreambooth",
    ]  # fmt: skip
    assert missing(["bash", "launch", *flags]) == []


@pytest.mark.slow
def test_accelerate_launch_with_two_processes(folder, tmp_path):
    """The script as a user starts it: one voice, one writer, the adapter of one process with twice the batch."""
    (tmp_path / "cat").mkdir()
    for i in range(3):
        Image.linear_gradient("L").rotate(90 * i).save(tmp_path / "cat" / f"{i}.png")
    script = [str(ROOT / "train" / "dreambooth.py"), "--adapter", "lora", "--rank", "2", "--instance_data_dir", "cat"]
    script += ["--pretrained_model_name_or_path", str(folder), "--instance_prompt", "a photo of sks cat"]
    script += ["--num_validation_images", "0", "--learning_rate", "0.01"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}

    def accelerate(processes, *more, interrupt=False):
        """What it prints; with `interrupt`, Ctrl-C as a terminal sends it, to all processes at once."""
        flags = ["--cpu", "--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *flags, *script, *more]
        run = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        lines = []
        for line in run.stdout:
            lines.append(line)
            if interrupt and line.startswith("Saved state to"):
                os.killpg(run.pid, signal.SIGINT)
                interrupt = False
        run.wait(600)
        return "".join(lines)

    said = accelerate(2, "--max_train_steps", "3", "--train_batch_size", "1", "--output_dir", "two")
    assert said.count("***** Running training *****") == 1
    assert "Total train batch size (w. parallel, distributed & accumulation) = 2" in said
    accelerate(1, "--max_train_steps", "3", "--train_batch_size", "2", "--output_dir", "one")
    two, one = (read_adapter(tmp_path / name / "adapter.safetensors").tensors["unet"] for name in ("two", "one"))
    for path, tensors in one.items():
        for name, value in tensors.items():
            torch.testing.assert_close(two[path][name], value, rtol=0, atol=1e-4 * float(value.abs().max()) + 1e-7)

    long = ["--max_train_steps", "400", "--checkpointing_steps", "5", "--output_dir", "long"]
    said = accelerate(2, *long, interrupt=True)
    assert "what is trained so far will be saved" in said
    reached = list(checkpoint.steps(tmp_path / "long"))
    assert 5 <= reached[-1] < 400
    more = ["--max_train_steps", str(reached[-1] + 2), "--resume_from_checkpoint", "latest"]
    assert f"Continuing training from global step {reached[-1]}" in accelerate(2, *long, *more)
