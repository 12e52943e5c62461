"""Several processes: the same run as one with the larger batch, exact resumption, one voice, one writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.test_resume import go, same
from tests.tiny import save_pipeline
from train import checkpoint

ROOT = Path(__file__).parents[1]


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
