"""Pure tensor functions: those that serve more than one family or export, and those with a gradient of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def truncated_svd(matrix: Tensor, rank: int | None, energy: float = 1.0) -> tuple[Tensor, Tensor, float]:
    """Best (B, A) of at most `rank` with B A near `matrix` (out, in), singular values split evenly, and ‖BA − M‖ / ‖M‖.

    `energy`: the share of ‖M‖² to keep; the smallest rank that keeps it is taken, `rank` (None: no limit) permitting.
    A whole SVD of 1280 x 1280 takes seconds, and a model has hundreds: where a small rank will do it is taken within
    a subspace that four power iterations found, twice as wide as long as that misses the share. The error stated is
    that of the factors returned.
    """
    total, most = float(matrix.square().sum()), min(matrix.shape)
    limit = most if rank is None else min(rank, most)
    width = limit if energy >= 1 else min(limit, 32)
    while True:
        inside = None
        if 8 * width < most:
            probe = torch.randn(matrix.shape[1], width + 16, generator=torch.Generator().manual_seed(0)).to(matrix)
            for _ in range(4):
                probe = torch.linalg.qr(matrix.t() @ torch.linalg.qr(matrix @ probe).Q).Q
            inside = torch.linalg.qr(matrix @ probe).Q
        left, values, right = torch.linalg.svd(matrix if inside is None else inside.t() @ matrix, full_matrices=False)
        kept = int((values.square().cumsum(0)[:limit] < energy * total).sum()) + 1
        if energy >= 1 or inside is None or kept <= width or width == limit:
            break
        width = min(2 * width, limit)
    count = limit if energy >= 1 else min(kept, limit)
    root = values[:count].sqrt()
    up, down = (left if inside is None else inside @ left)[:, :count] * root, root[:, None] * right[:count]
    return up, down, float((up @ down - matrix).norm()) / total**0.5 if total else 0.0


def product_svd(up: Tensor, down: Tensor, rank: int | None, energy: float = 1.0) -> tuple[Tensor, Tensor]:
    """`truncated_svd` of B A, B (out, n), A (n, in), without the product. Directions without effect are left out."""
    left, right = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().t())
    outer, values, inner = torch.linalg.svd(left.R @ right.R.t(), full_matrices=False)
    squares = values.square().cumsum(0)
    count = int((values > 1e-7 * values[0]).sum())  # what fp32 factors can hold
    if energy < 1:
        count = min(count, int((squares < energy * squares[-1]).sum()) + 1)
    count = max(1, count if rank is None else min(count, rank))
    root = values[:count].sqrt()
    b, a = left.Q @ outer[:, :count] * root, root[:, None] * (inner[:count] @ right.Q.t())
    return b.to(up), a.to(down)


def product_norm(up: Tensor, down: Tensor) -> float:
    """‖B A‖ of B (out, n), A (n, in), without the product."""
    left, right = torch.linalg.qr(up.double(), mode="r").R, torch.linalg.qr(down.double().t(), mode="r").R
    return float((left @ right.t()).norm())


def dense_weight(linear: Any) -> Tensor:
    """The frozen W (out, in) of a projection in fp32. Raises RuntimeError where it cannot be read."""
    base = linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear
    weight = base.weight.detach()
    if weight.is_meta and hasattr(base, "_hf_hook"):
        raise RuntimeError("the weight is offloaded; add, load, fuse or export adapters before enabling offloading")
    shape = (base.out_features, base.in_features) if hasattr(base, "in_features") else weight.shape  # a convolution
    if not weight.is_floating_point() or weight.shape != shape:
        raise RuntimeError(f"the weight of a {type(base).__name__} is packed as {tuple(weight.shape)} {weight.dtype}")
    return matrix(weight.dequantize() if type(weight) is not Tensor else weight).float()


def matrix(weight: Tensor) -> Tensor:
    """W as (out, in): that of a convolution (out, channels, height, width) acts on patches."""
    return weight.flatten(1)


def narrowed(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product B A of factors whose rank exceeds min(out, in), with that as their rank."""
    if up.shape[1] <= min(len(up), down.shape[1]):
        return up, down
    if len(up) <= down.shape[1]:
        return torch.eye(len(up)).to(up), up @ down
    return up @ down, torch.eye(down.shape[1]).to(up)


def patched(core: Tensor, down: Tensor, columns: int) -> Tensor:
    """A (rank, columns) of patches, of a core (rank, inner, height, width) and (inner, channels).

    Raises ValueError, before anything is made, where they do not make as many columns.
    """
    if core.ndim != 4 or core.shape[1] != len(down) or down.shape[1:].numel() * core.shape[2:].numel() != columns:
        raise ValueError(f"a core {tuple(core.shape)} and {tuple(down.shape)} do not make {columns} columns")
    return torch.einsum("ijkl,jr->irkl", core, matrix(down)).flatten(1)


def largest_divisor(size: int, limit: int) -> int:
    """The largest divisor of `size` up to `limit`."""
    return next(d for d in range(min(size, limit), 0, -1) if size % d == 0)


def skew(values: Tensor, size: int) -> Tensor:
    """K = -Kᵀ (n, size, size) of the values above its diagonal, row by row, (n, size (size - 1) / 2)."""
    rows, columns = torch.triu_indices(size, size, 1, device=values.device)
    upper = values.new_zeros(len(values), size, size).index_put(
        (torch.arange(len(values))[:, None], rows, columns), values
    )
    return upper - upper.transpose(1, 2)


def skew_part(turns: Tensor) -> Tensor:
    """The values above the diagonal of K (n, size, size), as `skew` takes them."""
    rows, columns = torch.triu_indices(turns.shape[1], turns.shape[1], 1, device=turns.device)
    return turns[:, rows, columns]


def limited(turns: Tensor, limit: float) -> Tensor:
    """`turns` at most of the norm `limit`, if that is above 0."""
    norm = float(turns.norm()) + 1e-8
    return turns * (limit / norm) if 0 < limit < norm else turns


def cayley_delta(turns: Tensor, powers: int = 0) -> Tensor:
    """(I + K) (I − K)⁻¹ − I of K (n, size, size), 0 for K = 0; with `powers` as a series that ends with K^powers."""
    if not powers:
        eye = torch.eye(turns.shape[-1], device=turns.device, dtype=turns.dtype)
        return torch.linalg.solve(eye - turns, 2 * turns)
    power, total = turns, torch.zeros_like(turns)
    for _ in range(powers - 1):
        total, power = total + 2 * power, power @ turns
    return total + power


def ring_delta(x: Tensor, cores: Sequence[Tensor], starts: Sequence[Tensor], bonds: Tensor) -> Tensor:
    """(T - I) x for rows x (tokens, in), T a ring of three cores S_d + E_d, of which the S_d alone give the identity.

    `cores`: E_d (J_d, J_d, R, R), in = J_1 J_2 J_3; `starts`: S_1 and S_2 of S_d = I ⊗ Q_d; `bonds`: `ring_bonds(Q)`.
    With the first two cores joined to I ⊗ P + D, and k for their R² outer bonds,
    T - I = Σ_k D_k ⊗ (Q_3k I + E_3k) + P_k I ⊗ E_3k: so it is 0 at the start in any dtype, and a small E is not rounded
    away. The tokens stand last inside, where every product is wide. For its gradient it keeps x and D alone.
    """
    values = [value.to(x) for value in (*cores, *starts, bonds)]
    return _ring_delta(x, *values)[0] if torch.compiler.is_compiling() else _RingDelta.apply(x, *values)


def ring_bonds(bonds: Tensor) -> Tensor:
    """P_k = (Q_1 Q_2)_k and Q_3k, (2, R²), of bonds Q (3, R, R) with tr(Q_1 Q_2 Q_3) = 1."""
    return torch.stack(((bonds[0] @ bonds[1]).flatten(), bonds[2].t().flatten()))


def _ring_delta(
    x: Tensor, e1: Tensor, e2: Tensor, e3: Tensor, s1: Tensor, s2: Tensor, bonds: Tensor
) -> tuple[Tensor, Tensor]:
    """(T - I) x and D, (J_1 J_2, J_1 J_2 R²)."""
    size, ring = len(e1) * len(e2), e1.shape[2]
    joined = torch.addmm(_tall(s1) @ _wide(e2), _tall(e1), _wide(s2 + e2))
    joined = joined.view(len(e1), len(e1), ring, len(e2), len(e2), ring).permute(0, 3, 1, 4, 2, 5).reshape(size, -1)
    _, shifted, inner = _ring_inner(x, e3, bonds)
    delta = torch.addmm(_combined(shifted, bonds[0]), joined, inner.view(joined.shape[1], -1))
    return delta.view(x.shape[1], -1).t(), joined


def _ring_inner(x: Tensor, e3: Tensor, bonds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x as (J_1 J_2, J_3, tokens); all E_3k x and (Q_3k I + E_3k) x as (J_1 J_2, R², J_3 tokens)."""
    width = len(e3)
    columns = x.t().contiguous().view(-1, width, len(x))
    shifted = torch.bmm(e3.permute(3, 2, 0, 1).reshape(1, -1, width).expand(len(columns), -1, -1), columns)
    shifted = shifted.view(len(columns), -1, width * len(x))
    return columns, shifted, _scattered(shifted, bonds[1], columns.view(len(columns), -1))


def _combined(parts: Tensor, bonds: Tensor) -> Tensor:
    """Σ_k b_k parts_k, (n, R², m) -> (n, m); a single b is 1."""
    return parts[:, 0] if len(bonds) == 1 else torch.einsum("nkm,k->nm", parts, bonds)


def _scattered(parts: Tensor, bonds: Tensor, whole: Tensor) -> Tensor:
    """parts_k + b_k whole, the transpose of `_combined` added to (n, R², m)."""
    return parts + whole[:, None] if len(bonds) == 1 else torch.addcmul(parts, bonds[:, None], whole[:, None])


def _tall(core: Tensor) -> Tensor:
    return core.reshape(-1, core.shape[3])


def _wide(core: Tensor) -> Tensor:
    return core.permute(2, 0, 1, 3).reshape(core.shape[2], -1)


class _RingDelta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *values: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            delta, joined = _ring_delta(x, *values)
        ctx.save_for_backward(x, joined, *values)
        return delta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, joined, e1, e2, e3, s1, s2, bonds = ctx.saved_tensors
        size, ring, width = len(joined), e1.shape[2], len(e3)
        columns, _, inner = _ring_inner(x, e3, bonds)
        outer = gradient.t().contiguous().view(size, -1)
        middle = (joined.t() @ outer).view(size, -1, outer.shape[1])
        through = _scattered(middle, bonds[0], outer).view(size, -1, len(x))
        right = e3.permute(3, 2, 0, 1).reshape(1, -1, width).expand(size, -1, -1)
        to_x = torch.baddbmm(_combined(middle, bonds[1]).view_as(columns), right.transpose(1, 2), through)
        to_e3 = torch.bmm(through, columns.transpose(1, 2)).sum(0).view(ring, ring, width, width).permute(2, 3, 1, 0)
        to_joined = (outer @ inner.view(joined.shape[1], -1).t()).view(*2 * (len(e1), len(e2)), ring, ring)
        to_joined = to_joined.permute(0, 2, 4, 1, 3, 5).reshape(e1[..., 0].numel(), -1)
        to_e1 = (to_joined @ _wide(s2 + e2).t()).view_as(e1)
        to_e2 = (_tall(s1 + e1).t() @ to_joined).view(ring, len(e2), len(e2), ring).permute(1, 2, 0, 3)
        return to_x.view(x.shape[1], -1).t(), to_e1, to_e2, to_e3, None, None, None
