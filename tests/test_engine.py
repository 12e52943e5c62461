"""The loop: what it yields, what it leaves alone, and that a run depends on its seed and on nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from diffusion_adapters import FAMILIES, Adapter, add_adapter
from tests.tiny import save_pipeline
from train.bases import BaseOptions, inspect_base, load_base
from train.data import CachedImages, Example
from train.engine import Trainer
from train.losses import denoising
from train.objective import Objective
from train.processes import make_accelerator
from train.settings import TrainOptions, optimizer_groups, settle

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def base(folder):
    options = BaseOptions(pretrained_model_name_or_path=str(folder))
    return load_base(inspect_base(options), options, CPU, torch.float32)


def dataset(base, **options):
    images = [Image.linear_gradient("L").resize((16, 16)).rotate(90 * i).convert("RGB") for i in range(3)]
    examples = [Example(f"{i}.png", (im,), "a photo of sks cat", (16, 16)) for i, im in enumerate(images)]
    return CachedImages(base, examples, **options)


def start(base, family="lora", **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return add_adapter(base.denoiser, "sks", family, **options)


def trainer(base, adapters=None, objective=None, **options):
    options = TrainOptions(**{"max_train_steps": 3, "learning_rate": 1e-2} | options)
    adapters = adapters if adapters is not None else start(base)
    return Trainer(make_accelerator(options), options, base, adapters, dataset(base), objective=objective)


def go(base, *args, stop=lambda: False, **options):
    run = trainer(base, *args, **options)
    records = list(run.train(stop))
    return records, {name: value.detach().clone() for name, value in run.adapters.state_dict().items()}


def fresh(folder):
    options = BaseOptions(pretrained_model_name_or_path=str(folder))
    return load_base(inspect_base(options), options, CPU, torch.float32)


def test_it_yields_a_record_per_step_and_learns(base):
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    adapters = start(base)
    batch = dataset(base).batch(list(range(32)), seed=7)  # noise that training never sees
    with torch.no_grad():
        first = denoising(base.predict(base.denoiser, batch))
    records, _ = go(base, adapters, max_train_steps=40, train_batch_size=4)
    assert [record["step"] for record in records] == list(range(1, 41))
    assert {"step", "loss", "lr", "grad_norm"} <= set(records[0])
    with torch.no_grad():
        assert denoising(base.predict(base.denoiser, batch)) < 0.97 * first
    after = base.denoiser.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_run_repeats_bitwise_and_changes_with_the_seed(folder):
    first, again, other = (go(fresh(folder), seed=seed) for seed in (0, 0, 1))
    assert first[0] == again[0]
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    assert first[0] != other[0]


@pytest.mark.parametrize(
    "other", [{"train_batch_size": 2, "gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}]
)
def test_the_way_of_computing_does_not_change_the_run(folder, other):
    """Accumulation and checkpointing see the same samples and noise as one large batch."""
    plain = go(fresh(folder), train_batch_size=4)
    same = go(fresh(folder), **{"train_batch_size": 4} | other)
    for one, two in zip(plain[0], same[0], strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    for name in plain[1]:
        torch.testing.assert_close(plain[1][name], same[1][name], atol=1e-5, rtol=1e-3)


def test_trained_values_are_fp32_in_mixed_precision(folder):
    options = BaseOptions(pretrained_model_name_or_path=str(folder))
    half = load_base(inspect_base(options), options, CPU, torch.bfloat16)
    adapters = start(half)
    records, values = go(half, adapters, mixed_precision="bf16")
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in values.values())
    exact, _ = go(fresh(folder))
    assert records[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)


def test_the_learning_rate_follows_its_schedule(base):
    records, _ = go(base, lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=6, gradient_accumulation_steps=2)
    assert [record["lr"] for record in records] == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


def test_what_is_not_given_follows_from_the_rest():
    kind = FAMILIES["lora"]
    settled = lambda processes=1, **options: settle(TrainOptions(**options), kind, 10, processes)  # noqa: E731
    assert settled().learning_rate == kind.learning_rate
    assert settled(learning_rate=3e-4).learning_rate == 3e-4
    scaled = settled(2, learning_rate=1e-4, scale_lr=True, train_batch_size=3, gradient_accumulation_steps=2)
    assert scaled.learning_rate == pytest.approx(12e-4)
    assert settle(scaled, kind, 10, 2) == scaled
    assert settled().max_train_steps == TrainOptions().max_train_steps
    assert settled(2, num_train_epochs=3, train_batch_size=2).max_train_steps == 8  # 30 pictures, 4 at a time


def test_groups_of_equal_settings_are_joined(base):
    adapters = [m for m in start(base).modules() if isinstance(m, Adapter)]
    (group,) = optimizer_groups(adapters, 1e-3)
    assert len(group["params"]) == sum(len(list(adapter.parameters())) for adapter in adapters)
    for i, adapter in enumerate(adapters):
        adapter.parameter_groups = lambda lr, i=i, own=adapter: [
            {"params": list(own.parameters()), "lr": lr * (1 + i % 2)}
        ]
    assert sorted(group["lr"] for group in optimizer_groups(adapters, 1e-3)) == [1e-3, 2e-3]


def test_penalties_are_part_of_the_loss(base):
    adapters = start(base)
    plain, _ = go(base, adapters, max_train_steps=1, learning_rate=1e-12)
    own = [m for m in adapters.modules() if isinstance(m, Adapter)]
    for adapter in own:
        adapter.penalty = lambda: torch.tensor(0.5)
    more, _ = go(base, adapters, max_train_steps=1, learning_rate=1e-12)
    assert more[0]["loss"] == pytest.approx(plain[0]["loss"] + 0.5 * len(own), rel=1e-3)


def test_a_loss_that_is_not_finite_stops_before_the_step(base):
    adapters = start(base)
    calls = []

    def objective(*given):
        calls.append(1)
        loss, parts = Objective()(*given)
        return loss * (float("nan") if len(calls) == 2 else 1.0), parts

    with pytest.raises(
        RuntimeError, match=r"the loss is nan at step 2, learning rate 0.01, pictures \d.png; training stopped"
    ):
        go(base, adapters, objective=objective)
    assert all(torch.isfinite(value).all() for value in adapters.parameters())


def test_adapters_that_are_never_used_are_an_error(base):
    base.predict = lambda denoiser, batch: type(base).predict(base, lambda noisy, *a, **k: (noisy * base.knob,), batch)
    base.knob = torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"adapted projections were never used, first "):
        go(base)


def test_stop_ends_the_run_after_the_step(base):
    asked = []
    records, _ = go(base, max_train_steps=50, stop=lambda: asked.append(1) or len(asked) == 2)
    assert len(records) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is for GPUs")
def test_a_precision_that_the_device_lacks_is_refused():
    with pytest.raises(ValueError, match="--mixed_precision fp16 does not work on cpu; use another, or no"):
        make_accelerator(TrainOptions(mixed_precision="fp16"))


def test_options_are_checked():
    for name, value in {"max_train_steps": 0, "learning_rate": 0.0, "adam_beta1": 1.0, "seed": -1}.items():
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(TrainOptions(), **{name: value})
