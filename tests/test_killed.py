"""Training is killed with SIGKILL at random instants and goes on each time, to the end of a run that was not killed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_adapters.safe import read_safetensors
from tests import forked
from tests.tiny import save_pipeline
from train import checkpoint, dreambooth, state

KILLS = 50
STEPS = 16


def arguments(base, output, *more):
    subject = ("--instance_data_dir", "cat", "--instance_prompt", "a photo of sks cat", "--num_validation_images", "0")
    run = (
        "--adapter",
        "lora",
        "--rank",
        "2",
        "--target_modules",
        "attn2.to_q",
        "--max_train_steps",
        str(STEPS),
        "--use_ema",
    )
    keep = ("--checkpointing_steps", "1", "--checkpoints_total_limit", "2", "--resume_from_checkpoint", "latest")
    shape = ("--gradient_accumulation_steps", "2", "--random_flip", "--output_dir", str(output))
    return ["--pretrained_model_name_or_path", str(base), *subject, *run, *keep, *shape, *more]


def train(argv, said):
    """A process that trains; its id."""

    def work():
        assert dreambooth.main(argv) == 0

    return forked.start(work, said)


def ended(output):
    """Everything of the end of a run that must repeat bitwise."""
    last = output / f"checkpoint-{STEPS}"
    checkpoint.verify(last)
    tensors, _ = read_safetensors(output / "adapter.safetensors")
    kept = state.read(last)
    numbers, _ = read_safetensors(last / state.TENSORS)
    return {f"adapter {name}": value for name, value in tensors.items()} | numbers, kept["history"], kept["updates"]


@pytest.mark.slow
def test_killed_at_fifty_random_instants_it_ends_as_if_it_had_not_been(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = save_pipeline(tmp_path / "tiny")
    Path("cat").mkdir()
    for i in range(3):
        Image.linear_gradient("L").rotate(90 * i).save(f"cat/{i}.png")
    started = time.monotonic()
    assert forked.wait(train(arguments(base, "whole"), tmp_path / "whole.txt"), 600) == 0
    seconds = time.monotonic() - started
    tensors, history, updates = ended(Path("whole"))
    assert [record["step"] for record in history] == list(range(1, STEPS + 1))

    chance = random.Random(0)
    kills, runs, half_written, reached = 0, 0, 0, set[int]()
    while kills < KILLS:
        runs += 1
        output, said = Path(f"killed-{runs}"), tmp_path / f"killed-{runs}.txt"
        patience = 1.0
        while True:
            before = checkpoint.steps(output)
            child = train(arguments(base, output), said)
            code = forked.wait(child, chance.uniform(0.1, 0.7) * seconds * patience if kills < KILLS else 600)
            if code is not None:
                assert code == 0, said.read_text()
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            after = checkpoint.steps(output)
            patience *= 1.0 if list(after) != list(before) else 1.2  # the machine has become slower: let it get on
            half_written += bool(list(output.glob(f"{checkpoint.PART}*")))
            reached |= set(after)
        again, records, count = ended(output)
        assert records == history
        assert count == updates
        assert list(again) == list(tensors)
        assert [name for name in tensors if not torch.equal(tensors[name], again[name])] == []
        assert not list(output.glob(".*"))
    with capsys.disabled():
        print(
            f"\n{kills} kills in {runs} runs of {STEPS} steps, {half_written} of them amid the writing of a checkpoint;"
            f" {len(reached)} different steps had been reached; {time.monotonic() - started:.0f} s"
        )
