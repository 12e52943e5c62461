"""Losses of hybrid domains: how far features are from the domains, and which way they went there from their source.

Li et al. 2023, Few-shot Hybrid Domain Adaptation of Image Generators, https://arxiv.org/abs/2310.19378 (ICLR 2024):
figure 2 defines D_st = f_t − f_s, D_tp = f* − f_t, L_dist = |D_tp|² and L_direct = 1 − cos(D_st, D_tp), with f* the
projection of the target's features f_t on the subspace of a domain's references and f_s the features of its source. The
translation is that of UniHDA, Li et al. 2024, https://arxiv.org/abs/2401.12596. All functions are pure; features are
rows, (..., d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALL = 1e-6
"""Singular values below this part of the largest, or of the mean's norm, are rounding."""
GATE = 1e-3
"""Steps below this part of |f_s| have no direction."""


class Span(NamedTuple):
    """The affine subspace m + span(Q) of a domain's references, and the distance that its own pictures have from it.

    `mean` (d,), `basis` (r, d) of orthonormal rows, r ≤ references − 1; `tau`: a number, see `leave_one_out`.
    """

    mean: Tensor
    basis: Tensor
    tau: float = 0.0


def affine_span(references: Tensor, energy: float = 1.0) -> Span:
    """The smallest affine subspace with all `references` (n, d), or with the `energy` share of their squared spread.

    Through their mean, in the right singular vectors of what is left, those with s > max(1e-6 s₁, 1e-6 |m|).
    """
    mean = references.mean(0)
    _, values, rows = torch.linalg.svd(references - mean, full_matrices=False)
    kept = values > max(SMALL * float(values.max()), SMALL * float(mean.norm()))
    if energy < 1 and kept.any():
        share = values.square().cumsum(0) / values.square().sum()
        kept &= torch.cat([share.new_zeros(1), share[:-1]]) < energy
    return Span(mean, rows[kept])


def project(features: Tensor, span: Span) -> Tensor:
    """f* = m + (f − m) Qᵀ Q, of the shape of `features`."""
    return span.mean + (features - span.mean) @ span.basis.T @ span.basis


def leave_one_out(references: Tensor, energy: float = 1.0) -> float:
    """Median distance of each of `references` (n, d) from the span of the others: that of a new picture of the domain.

    A reference has distance 0 from a span that it is part of, so that 0 would ask for the references themselves.
    """
    distances = [
        (row - project(row, affine_span(torch.cat([references[:i], references[i + 1 :]]), energy))).norm()
        for i, row in enumerate(references)
    ]
    return float(torch.stack(distances).median())


def domain_span(references: Tensor, where: str, energy: float = 1.0) -> Span:
    """The span of a domain with its τ. Raises ValueError, naming `where`, if its references cannot be told apart."""
    span = affine_span(references, energy)
    if len(references) < 2 or not len(span.basis):
        raise ValueError(
            f"{where}: its {len(references)} pictures have the same features, so they span nothing; "
            "give different pictures, or another --encoder"
        )
    return span._replace(tau=leave_one_out(references, energy))


def distance_loss(features: Tensor, span: Span, tau: float | None = None) -> Tensor:
    """L_dist = max(|D_tp| − τ, 0)², (b, d) -> (b,); with τ = 0 that of figure 2. τ is the span's unless given."""
    gap = (project(features, span) - features).norm(dim=-1)
    return (gap - (span.tau if tau is None else tau)).clamp(min=0).square()


def cosine_loss(step: Tensor, toward: Tensor, scale: Tensor, gate: float = GATE) -> Tensor:
    """1 − cos(step, toward), (b, d) -> (b,); 0, without a gradient, where either is shorter than `gate` × `scale` (b,).

    The gradient is of the size 1 / |step|: an adapter starts at f_t = f_s, where there is no direction, and on the
    subspace there is none left.
    """
    long = torch.minimum(step.detach().norm(dim=-1), toward.detach().norm(dim=-1)) > gate * scale
    inside = long[..., None]
    cosine = torch.cosine_similarity(torch.where(inside, step, 1.0), torch.where(inside, toward, 1.0), dim=-1)
    return torch.where(long, 1 - cosine, 0.0)


def direction_loss(source: Tensor, features: Tensor, span: Span, gate: float = GATE) -> Tensor:
    """L_direct = 1 − cos(D_st, D_tp), (b, d) -> (b,): least if f_t goes perpendicular from f_s to the subspace."""
    source = source.detach()
    return cosine_loss(features - source, project(features, span) - features, source.norm(dim=-1), gate)


def drift_loss(source: Tensor, features: Tensor, span: Span) -> Tensor:
    """L_par = |Q (f_t − f_s)|², (b, d) -> (b,): what f_t moved along the subspace; L_direct without its singularity."""
    return ((features - source.detach()) @ span.basis.T).square().sum(-1)


def translation(source_mean: Tensor, spans: Sequence[Span], weights: Sequence[float] | None = None) -> Tensor:
    """Δ = Σ_k α_k (m_k − mean of f_s), (d,): from the source to all domains; α_k = 1 unless `weights` says else."""
    alphas = [1.0] * len(spans) if weights is None else weights
    return torch.stack([a * (span.mean - source_mean) for a, span in zip(alphas, spans, strict=True)]).sum(0)


def translation_loss(source: Tensor, features: Tensor, delta: Tensor, gate: float = GATE) -> Tensor:
    """1 − cos(f_t − f_s, Δ), (b, d) -> (b,): one way for every picture, so that they stay as diverse; no length."""
    source = source.detach()
    return cosine_loss(features - source, delta.expand_as(features), source.norm(dim=-1), gate)


def displacement_loss(source: Tensor, features: Tensor, delta: Tensor) -> Tensor:
    """|f_t − f_s − Δ|² / |Δ|², (b, d) -> (b,): the translation with its length; 1 where nothing moved."""
    return (features - source.detach() - delta).square().sum(-1) / delta.square().sum()


def coordinates(source: Tensor, domains: Sequence[Tensor], ridge: float = 1.0) -> Tensor:
    """C (d, K), with which (f_t − f_s) C is how far a picture went to each domain: 1 at its mean, 0 at that of others.

    The generalized least squares of f_t − f_s in the ways m_k − m_s, which `source` (n, d) and each of `domains`
    (n_k, d) give: C = S⁻¹ D (Dᵀ S⁻¹ D)⁻¹ with the pooled covariance S of all of them around their means, shrunk by
    `ridge` of its mean variance towards a multiple of 1. What differs among pictures of a domain counts little, so
    that a domain that changes much drowns none that changes little.
    """
    ways = torch.stack([domain.mean(0) - source.mean(0) for domain in domains], 1)
    rows = torch.cat([seen - seen.mean(0) for seen in (source, *domains)])
    spread = rows.T @ rows / len(rows)
    spread = spread + ridge * spread.trace() / len(spread) * torch.eye(len(spread)).to(spread)
    found = torch.linalg.solve(spread, ways)
    return found @ torch.linalg.pinv(ways.T @ found)  # of equal domains, too


def coordinates_loss(source: Tensor, features: Tensor, read: Tensor) -> Tensor:
    """Mean over domains of (1 − (f_t − f_s) C)², (b, d) -> (b,), with C (d, K) of `coordinates`; 1 at the start."""
    return (1 - (features - source.detach()) @ read).square().mean(-1)


def structure_loss(source: Tensor, target: Tensor, cells: int = 256) -> Tensor:
    """How far places resemble each other otherwise than in the source: latents (b, c, h, w) twice -> (b,).

    Mean squared difference of the cosines of all pairs of places, pooled to at most `cells`; no encoder is needed.
    After the self-similarity of DoRM, Wu et al. 2023, https://arxiv.org/abs/2302.02550.
    """
    height, width = target.shape[-2:]
    shrink = max(1.0, (height * width / cells) ** 0.5)
    size = (round(height / shrink), round(width / shrink))

    def alike(latents: Tensor) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(latents.flatten(1, -3), size).flatten(2)
        unit = torch.nn.functional.normalize(pooled - pooled.mean(2, keepdim=True), dim=1)
        return unit.transpose(1, 2) @ unit

    return (alike(target) - alike(source).detach()).square().mean((1, 2))


def separability(source: Tensor, spans: Sequence[Span]) -> tuple[list[float], float]:
    """How well features tell domains from sources (n, d): each |m_k − m_s| / (τ_k + spread_s), and the largest cosine.

    spread_s is the root mean square distance of sources from their mean; the cosine that of two m_k − m_s. Below
    about 1, or above 0.9, the features do not.
    """
    mean = source.mean(0)
    spread = float((source - mean).square().sum(-1).mean().sqrt())
    ways = torch.stack([span.mean - mean for span in spans])
    ratios = [float(way.norm()) / max(span.tau + spread, 1e-12) for way, span in zip(ways, spans, strict=True)]
    unit = torch.nn.functional.normalize(ways, dim=-1)
    cosines = (unit @ unit.T).triu(1)
    return ratios, float(cosines.max()) if len(spans) > 1 else 0.0
