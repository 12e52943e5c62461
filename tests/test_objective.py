"""What a step minimizes: each term against numbers worked out beside it, and the frozen base as teacher."""

from __future__ import annotations

import pytest
import torch

from diffusion_adapters import Adapter, add_adapter, coverage
from tests.tiny import save_pipeline
from train.bases import BaseOptions, inspect_base, load_base
from train.losses import Prediction, masked_mean, pointwise
from train.objective import Objective, predict_frozen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def base(folder):
    options = BaseOptions(pretrained_model_name_or_path=str(folder))
    return load_base(inspect_base(options), options, torch.device("cpu"), torch.float32)


def adapted(base, stirred=True):
    adapters = add_adapter(base.denoiser, "sks", "lora", rank=2)
    if stirred:
        with torch.no_grad():
            for value in adapters.parameters():
                value.add_(0.3 * torch.randn(value.shape))
    return adapters


def a_batch(base, rows=4, prior=0):
    """`rows` instance rows, and `prior` rows of the same pictures and noise with another prompt."""
    moments = torch.randn(rows, 8, 8, 8)
    drawn = {"seeds": torch.arange(rows), "spread": torch.linspace(0.2, 0.8, rows)}
    embeds = base.encode_prompt(["a photo of sks cat"] * rows + ["a photo of a cat"] * prior)
    batch = {name: torch.cat([value, value[:prior]]) for name, value in {"moments": moments, **drawn}.items()}
    return {**batch, **embeds, **({"prior": torch.arange(rows + prior) >= rows} if prior else {})}


def alone(base, adapters, batch):
    """What the base without any adapter predicts."""
    weights = dict(adapters.weights)
    adapters.set_weights({})
    with torch.no_grad():
        made = base.predict(base.denoiser, batch).prediction
    adapters.set_weights(weights)
    return made


def gradients(adapters, loss):
    adapters.zero_grad()
    loss.backward()
    return torch.cat([value.grad.flatten() for value in adapters.parameters()])


def test_a_plain_batch_gives_the_denoising_loss(base):
    adapters, batch = adapted(base), a_batch(base)
    loss, parts = Objective()(base, base.denoiser, adapters, batch)
    made = base.predict(base.denoiser, batch)
    assert loss.item() == pytest.approx((made.prediction - made.target).square().mean().item(), rel=1e-5)
    assert list(parts) == ["loss_instance"]
    assert not parts["loss_instance"].requires_grad


def test_penalties_and_sample_weights_are_part_of_the_loss(base):
    adapters, batch = adapted(base), a_batch(base, rows=2)
    error = (lambda made: (made.prediction - made.target).square().flatten(1).mean(1))(
        base.predict(base.denoiser, batch)
    )
    own = [m for m in adapters.modules() if isinstance(m, Adapter)]
    for adapter in own:
        adapter.penalty = lambda: torch.tensor(0.5)
    loss, parts = Objective()(base, base.denoiser, adapters, {**batch, "loss_weight": torch.tensor([1.0, 3.0])})
    assert parts["penalty"] == 0.5 * len(own)
    assert loss.item() == pytest.approx((error[0] + 3 * error[1]).item() / 2 + 0.5 * len(own), rel=1e-5)


def test_class_images_are_weighed_against_the_instance(base):
    adapters, batch = adapted(base), a_batch(base, rows=4, prior=2)
    loss, parts = Objective(prior_loss_weight=0.3)(base, base.denoiser, adapters, batch)
    made = base.predict(base.denoiser, batch)
    error = (made.prediction - made.target).square().flatten(1).mean(1)
    assert parts["loss_instance"].item() == pytest.approx(error[:4].mean().item(), rel=1e-5)
    assert parts["loss_prior"].item() == pytest.approx(0.3 * error[4:].mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-5)


def test_the_teacher_is_the_base_without_adapters(base):
    adapters, batch = adapted(base), a_batch(base, rows=3, prior=3)
    objective = Objective(teacher=True, prior_loss_weight=0.7)
    loss, parts = objective(base, base.denoiser, adapters, batch)
    frozen, made = alone(base, adapters, batch), base.predict(base.denoiser, batch)
    expected = (made.prediction - frozen).square().flatten(1).mean(1)[3:].mean() * 0.7
    assert parts["loss_prior"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 1e-4
    whole = expected + (made.prediction - made.target).square().flatten(1).mean(1)[:3].mean()
    torch.testing.assert_close(gradients(adapters, loss), gradients(adapters, whole), rtol=1e-3, atol=1e-6)
    assert all(value.grad is None for value in base.denoiser.parameters())


def test_the_teacher_is_told_what_frozen_text_encoders_made(base):
    adapters, batch = adapted(base), a_batch(base, rows=2, prior=2)
    told = {**batch, "frozen/prompt_embeds": batch["prompt_embeds"], "prompt_embeds": batch["prompt_embeds"] + 0.5}
    loss, _ = Objective(teacher=True)(base, base.denoiser, adapters, told)
    frozen = alone(base, adapters, batch)
    made = base.predict(base.denoiser, told)
    target = torch.cat([made.target[:2], frozen[2:]])
    error = (made.prediction - target).square().flatten(1).mean(1)
    assert loss.item() == pytest.approx((error[:2].mean() + error[2:].mean()).item(), rel=1e-4)


def test_the_teacher_costs_no_gradient_under_autocast(base):
    """Values that autocast has cast without gradients must not be used again by the forward that is differentiated."""
    adapters, batch = adapted(base), a_batch(base, rows=2, prior=2)
    batch["mask"] = (torch.rand(4, 1, 8, 8) > 0.5).float()
    objective = Objective(teacher=True, masked_prior_weight=1.0)
    exact = gradients(adapters, objective(base, base.denoiser, adapters, batch)[0])
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(base, base.denoiser, adapters, batch)[0]
    half = gradients(adapters, loss)
    assert torch.nn.functional.cosine_similarity(half, exact, dim=0) > 0.99


def test_an_adapter_that_does_nothing_yet_agrees_with_the_teacher(base):
    adapters, batch = adapted(base, stirred=False), a_batch(base, rows=2, prior=2)
    _, parts = Objective(teacher=True)(base, base.denoiser, adapters, batch)
    assert parts["loss_prior"] < 1e-10


@pytest.mark.parametrize("settings", [{"teacher": True}, {"masked_prior_weight": 1.0}], ids=str)
def test_gradient_checkpointing_sees_the_adapters_again(base, settings):
    """It repeats the forward in backward: were adapters off by then, gradients would be others or none."""
    adapters, batch = adapted(base), a_batch(base, rows=2, prior=2)
    batch["mask"] = (torch.rand(4, 1, 8, 8) > 0.5).float()
    plain = gradients(adapters, Objective(**settings)(base, base.denoiser, adapters, batch)[0])
    base.denoiser.enable_gradient_checkpointing()
    base.denoiser.train()
    again = gradients(adapters, Objective(**settings)(base, base.denoiser, adapters, batch)[0])
    torch.testing.assert_close(plain, again, rtol=1e-3, atol=1e-6)

    loss = Objective(**settings)(base, base.denoiser, adapters, batch)[0]
    with adapters.bypassed(), pytest.raises(Exception, match=r"(?s)checkpoint|does not require grad|grad"):
        gradients(adapters, loss)


def test_bypassing_leaves_plans_and_coverage_as_they_were(base):
    adapters, batch = adapted(base), a_batch(base)
    plans = [projection.plan for projection in adapters.projections().values()]
    rows = torch.tensor([False, True, False, True])
    frozen = predict_frozen(base, base.denoiser, adapters, batch, rows)
    torch.testing.assert_close(frozen, alone(base, adapters, batch)[rows])
    adapters.plan()
    plans = [projection.plan for projection in adapters.projections().values()]
    predict_frozen(base, base.denoiser, adapters, batch, rows)
    assert not any(coverage(base.denoiser).values())
    with pytest.raises(KeyError), adapters.bypassed():
        raise KeyError
    assert all(a is b.plan for a, b in zip(plans, adapters.projections().values(), strict=True))
    base.predict(base.denoiser, batch).prediction.sum().backward()
    assert all(coverage(base.denoiser).values())


def test_a_masked_mean_is_divided_by_the_mask():
    error = torch.zeros(3, 2, 4, 4)
    error[:, :, 0] = 1.0  # the first of four rows of positions
    mask = torch.zeros(3, 1, 4, 4)
    mask[0], mask[1, :, :, :2] = 1.0, 0.5
    assert masked_mean(error).tolist() == [0.25] * 3
    assert masked_mean(error, mask).tolist() == [0.25, 0.25, 0.0]
    mask[1] = 0
    mask[1, :, 0] = 0.2
    assert masked_mean(error, mask).tolist() == pytest.approx([0.25, 1.0, 0.0])
    fine = mask.repeat_interleave(8, 2).repeat_interleave(8, 3)  # a mask in pixels
    torch.testing.assert_close(masked_mean(error, fine), masked_mean(error, mask))
    video = error[:, :, None].repeat(1, 1, 5, 1, 1)
    torch.testing.assert_close(masked_mean(video, mask), masked_mean(error, mask))


class Fixed:
    """A base whose predictions are given: one with adapters, another without."""

    def __init__(self, target, with_adapters, without):
        self.target, self.with_adapters, self.without = target, with_adapters, without
        self.projections = lambda: {}
        self.everyone = list
        self.off = False

    def bypassed(self):
        fixed = self

        class Off:
            def __enter__(self):
                fixed.off = True

            def __exit__(self, *_):
                fixed.off = False

        return Off()

    def predict(self, denoiser, batch):
        rows = batch["seeds"]
        return Prediction((self.without if self.off else self.with_adapters)[rows], self.target[rows])


def test_outside_the_mask_the_target_is_the_frozen_base():
    target, mine, without = torch.zeros(1, 1, 1, 4), torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), torch.ones(1, 1, 1, 4)
    fixed = Fixed(target, mine, without)
    batch = {"seeds": torch.tensor([0]), "mask": torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])}
    inside, outside = (1 + 4) / 2, (2**2 + 3**2) / 2
    loss, parts = Objective(masked_prior_weight=0.1)(fixed, None, fixed, batch)
    assert parts["loss_instance"].item() == pytest.approx(inside)
    assert parts["loss_outside"].item() == pytest.approx(0.1 * outside)
    assert loss.item() == pytest.approx(inside + 0.1 * outside)
    floor, _ = Objective(unmasked_weight=0.5)(fixed, None, fixed, batch)
    assert floor.item() == pytest.approx((1 + 4 + 0.5 * 9 + 0.5 * 16) / 3)


def test_rows_of_class_images_are_not_masked_and_have_their_own_target():
    target, mine = torch.zeros(2, 1, 1, 2), torch.tensor([1.0, 3.0, 2.0, 4.0]).reshape(2, 1, 1, 2)
    fixed = Fixed(target, mine, torch.full_like(mine, 10.0))
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).reshape(2, 1, 1, 2)
    batch = {"seeds": torch.arange(2), "mask": mask, "prior": torch.tensor([False, True])}
    _, parts = Objective(masked_prior_weight=1.0)(fixed, None, fixed, batch)
    assert [part.item() for part in parts.values()] == pytest.approx([1.0, (4 + 16) / 2, 7.0**2])


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_huber_losses_are_square_near_zero_and_linear_far_away(kind):
    near, far, zero = torch.full((1,), 1e-3), torch.full((1,), 1e3), torch.zeros(1)
    scale = 1.0 if kind == "huber" else 1 / 0.2
    assert pointwise(near, zero, kind, 0.2).item() == pytest.approx(scale * 1e-6, rel=1e-3)
    assert pointwise(far, zero, kind, 0.2).item() == pytest.approx(scale * 2 * 0.2 * 1e3, rel=1e-3)
