"""The losses of hybrid domains are those of figure 2 of the paper: by hand, and in what they do to features."""

from __future__ import annotations

import pytest
import torch

from train.subspace import (
    Span,
    affine_span,
    coordinates,
    coordinates_loss,
    cosine_loss,
    direction_loss,
    displacement_loss,
    distance_loss,
    domain_span,
    drift_loss,
    leave_one_out,
    project,
    separability,
    translation,
    translation_loss,
)

PLANE = torch.tensor([[0.0, 0, 1], [2, 0, 1], [0, 2, 1]], dtype=torch.double)
SOURCE = torch.tensor([[1.0, 1, 5]], dtype=torch.double)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_a_plane_by_hand() -> None:
    span = affine_span(PLANE)
    assert span.mean.tolist() == pytest.approx([2 / 3, 2 / 3, 1])
    assert len(span.basis) == 2
    target = torch.tensor([[1.0, 2, 3]], dtype=torch.double)
    assert project(target, span)[0].tolist() == pytest.approx([1, 2, 1])
    assert distance_loss(target, span).item() == pytest.approx(4)
    assert direction_loss(SOURCE, target, span).item() == pytest.approx(0.105573, abs=1e-6)
    assert drift_loss(SOURCE, target, span).item() == pytest.approx(1)


@pytest.mark.parametrize(("height", "value"), [(3.0, 0.0), (0.8, 2.0)])
def test_straight_down_is_right_and_overshooting_is_wrong(height: float, value: float) -> None:
    target = torch.tensor([[1.0, 1, height]], dtype=torch.double)
    assert direction_loss(SOURCE, target, affine_span(PLANE)).item() == pytest.approx(value, abs=1e-9)


def test_the_rank_is_that_of_the_references() -> None:
    assert len(affine_span(draw(10, 64)).basis) == 9
    same = affine_span(draw(1, 64).expand(10, 64))
    assert len(same.basis) == 0
    assert torch.allclose(project(draw(3, 64, seed=1), same), same.mean)
    flat = draw(10, 3) @ draw(3, 64, seed=1)
    assert len(affine_span(flat).basis) == 3
    assert len(affine_span(flat.float()).basis) == 3  # rounding is no direction
    assert len(affine_span(draw(10, 64), energy=0.5).basis) < 9


def test_references_without_a_difference_are_refused() -> None:
    with pytest.raises(ValueError, match=r"night: its 5 pictures have the same features.*another --encoder"):
        domain_span(draw(1, 8).expand(5, 8), "night")
    with pytest.raises(ValueError, match="its 1 pictures"):
        domain_span(draw(1, 8), "night")


def test_the_starts_without_a_direction_have_no_gradient() -> None:
    span = affine_span(PLANE)
    for point in (SOURCE, project(SOURCE, span), SOURCE + 1e-9):
        features = point.clone().requires_grad_()
        loss = direction_loss(SOURCE, features, span).sum()
        loss.backward()
        assert loss.item() == 0
        assert features.grad is not None
        assert features.grad.abs().sum() == 0
        away = point.clone().requires_grad_()
        (distance_loss(away, span) + translation_loss(SOURCE, away, draw(3))).sum().backward()
        assert torch.isfinite(away.grad).all()


def test_projecting_may_be_detached_for_the_distance() -> None:
    span, found = affine_span(draw(10, 32)), []
    for detached in (False, True):
        features = draw(4, 32, seed=1).requires_grad_()
        nearest = project(features, span)
        (nearest.detach() - features if detached else nearest - features).square().sum().backward()
        found.append(features.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    features = draw(4, 32, seed=1).requires_grad_()
    distance_loss(features, span).sum().backward()
    torch.testing.assert_close(features.grad, found[0], rtol=0, atol=1e-12)


def test_leaving_one_out_says_how_far_a_new_picture_is() -> None:
    references = draw(10, 64)
    span = domain_span(references, "here")
    assert distance_loss(references, span, tau=0).max() < 1e-20
    assert span.tau == leave_one_out(references) > 1
    inside = references[:1] + 0.5 * span.tau * torch.nn.functional.normalize(draw(1, 64, seed=2), dim=-1)
    assert distance_loss(inside, span).item() == 0 < distance_loss(inside, span, tau=0).item()


def test_sources_get_no_gradient() -> None:
    source, features, span = SOURCE.clone().requires_grad_(), SOURCE + draw(1, 3), affine_span(PLANE)
    features.requires_grad_()
    delta = translation(source.detach()[0], [span])
    parts = (direction_loss, drift_loss)
    total = sum(part(source, features, span).sum() for part in parts)
    total = total + translation_loss(source, features, delta).sum() + displacement_loss(source, features, delta).sum()
    total.backward()
    assert source.grad is None
    assert features.grad.abs().sum() > 0


def spread(features: torch.Tensor) -> float:
    return float((features - features.mean(0)).square().sum(-1).mean().sqrt())


def test_distance_alone_makes_all_pictures_one_and_the_translation_does_not() -> None:
    """The dossier's H8: 64 sources, two domains of ten references in 128 dimensions."""
    source = draw(64, 128)
    spans = [affine_span(draw(10, 128, seed=k) + 3 * draw(1, 128, seed=9 + k)) for k in (1, 2)]
    delta = translation(source.mean(0), spans)
    losses = {
        "distance": lambda f: sum(distance_loss(f, span) for span in spans),
        "displacement": lambda f: displacement_loss(source, f, delta) * delta.square().sum(),
    }
    kept = {}
    for name, loss in losses.items():
        features = source.clone().requires_grad_()
        optimizer = torch.optim.SGD([features], lr=0.2)
        for _ in range(400):
            optimizer.zero_grad()
            loss(features).sum().backward()
            optimizer.step()
        kept[name] = spread(features.detach()) / spread(source)
    assert kept["distance"] < 0.02
    assert kept["displacement"] == pytest.approx(1, abs=1e-6)


def test_a_translation_is_the_weighted_sum_of_the_ways() -> None:
    spans = [Span(draw(5, seed=k), draw(0, 5)) for k in range(2)]
    start = draw(5, seed=7)
    own = [span.mean - start for span in spans]
    torch.testing.assert_close(translation(start, spans), own[0] + own[1])
    torch.testing.assert_close(translation(start, spans, [1.0, 0.5]), own[0] + 0.5 * own[1])
    delta = translation(start, spans)
    assert displacement_loss(start[None], start[None], delta).item() == pytest.approx(1)
    assert displacement_loss(start[None], start[None] + delta, delta).item() == pytest.approx(0)
    assert translation_loss(start[None], start[None] + 0.3 * delta, delta).item() == pytest.approx(0)
    assert cosine_loss(delta[None], -delta[None], torch.ones(1)).item() == pytest.approx(2)


def test_coordinates_read_each_domain_alone() -> None:
    source = draw(40, 16)
    one, two = draw(8, 16, seed=1), draw(8, 16, seed=2)
    one[:, 0] += 9  # this domain changes a lot
    two[:, 1] += 2
    for ridge in (1e-3, 1.0, 1e6):
        read = coordinates(source, [one, two], ridge)
        ways = torch.stack([one.mean(0), two.mean(0)]) - source.mean(0)
        torch.testing.assert_close(ways @ read, torch.eye(2).double(), rtol=1e-9, atol=1e-9)
    for weights, value in (((0.0, 0.0), 1.0), ((1.0, 1.0), 0.0), ((1.0, 0.0), 0.5), ((2.0, 0.5), 0.625)):
        moved = source + torch.tensor(weights).double() @ ways
        torch.testing.assert_close(coordinates_loss(source, moved, read), torch.full((40,), value).double())
    literal = torch.tensor([[2.0, 0, 0], [-2, 0, 0]]).double()  # S = diag(4, 0, 0) / 3 before the ridge
    away = torch.tensor([[1.0, 1, 0]]).double()
    read = coordinates(literal, [away], ridge=3.0)  # S = 8 / 3 diag(1, 1/2, 1/2): what varies counts half
    torch.testing.assert_close(read[:, 0], torch.tensor([1 / 3, 2 / 3, 0]).double())


def test_separability_is_what_a_reader_would_say() -> None:
    source = draw(40, 16)
    far = [domain_span(draw(8, 16, seed=k) * 0.1 + 50 * torch.eye(16)[k], "x") for k in (1, 2)]
    ratios, cosine = separability(source, far)
    assert min(ratios) > 5
    assert abs(cosine) < 0.3
    near = [domain_span(draw(8, 16, seed=k), "x") for k in (3, 4)]
    assert min(separability(source, near)[0]) < 1
    assert separability(source, [far[0], far[0]])[1] == pytest.approx(1)
