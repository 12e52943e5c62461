"""What a step on several domains minimizes: one domain's denoising loss, or the way from the source to all of them.

A step on a domain's pictures trains that domain's part, the dials of the others at 0. A step on the base's own pictures
turns all dials to 1 and trains how the parts are mixed, or the parts too: the same noised latents, noise, level and
prompt with adapters off and on, a one-step estimate of the clean latents of each, features of both, and the losses of
`train.subspace` between them. One forward of the denoiser is differentiated by the loop, whatever the step: the
gradient of the features is taken at once, and what is returned is a loss whose gradient by the estimate it is. So no
dial moves between a forward and its backward, where gradient checkpointing repeats it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_adapters import AdapterSet
from train.bases import Base
from train.data import row_seed
from train.data.dataset import CachedImages, Row
from train.domain_options import SOURCE
from train.features import Features, make_features
from train.objective import Objective
from train.subspace import (
    Span,
    coordinates,
    coordinates_loss,
    direction_loss,
    displacement_loss,
    distance_loss,
    domain_span,
    separability,
    structure_loss,
    translation,
    translation_loss,
)

LOG = logging.getLogger("train")
SCALE = 4096.0
"""Of the loss while its gradient is taken: a half-precision denoiser has no smaller numbers. A power of 2 is exact."""
AT_ONCE = 8
WEAK, ALIKE = 1.0, 0.97
"""Separability below which an encoder is remarked on; cosine of two ways above which it is refused."""


class Reference(NamedTuple):
    """What one encoder sees at one part of the noise levels: spans by domain, the way to all of them, L_dist at the
    start by domain, which makes losses of any encoder comparable, and what reads how far each domain is reached."""

    spans: list[Span]
    way: Tensor
    starts: list[float]
    read: Tensor


class Directional:
    """(base, denoiser, adapters, batch) -> (loss, its parts by name). Pure, but for the dials, which it leaves set."""

    def __init__(
        self,
        config: Any,
        base: Base,
        dataset: CachedImages,
        adapters: AdapterSet,
        features: Sequence[Features],
        turn: Callable[[str | None], None],
    ) -> None:
        """Look at all references. `turn` makes the adapter ready for a step on one domain, or on all (None).

        Raises ValueError if none of the features tells domains apart.
        """
        self.config, self.features, self.turn = config, features, turn
        self.domains = dataset.domains
        self.names = [name for name in self.domains if name != SOURCE]
        self.own = Objective.of(config)
        self.hopeless: list[str] = []
        self.references = [self._look(base, dataset, adapters, encoder) for encoder in features]
        if len(self.hopeless) == len(features):  # beside a better one a weak one may help
            raise ValueError(self.hopeless[0])

    def __call__(
        self, base: Base, denoiser: nn.Module, adapters: AdapterSet, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        name = self.domains[int(batch["domain"][0])]
        if name != SOURCE:
            self.turn(name)
            value, _ = self.own(base, denoiser, adapters, batch)
            return value, {}
        self.turn(None)
        return self.on_all(base, denoiser, adapters, batch)

    def on_all(
        self, base: Base, denoiser: nn.Module, adapters: AdapterSet, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A step on all domains: a loss whose gradient is that of the losses between features, and these by name."""
        spread, buckets = batch["spread"], self.config.level_buckets
        levels = self.level(spread)
        batch = {**batch, "spread": base.spread_at(levels, batch["moments"])}
        with torch.no_grad(), adapters.bypassed():
            before = base.predict(denoiser, batch).denoised()
        made = base.predict(denoiser, batch).denoised()
        after = made.detach().requires_grad_()
        with adapters.bypassed():
            parts = self.parts(before, after, batch, (spread * buckets).long().clamp(max=buckets - 1))
            value = self.config.hybrid_weight * torch.stack(list(parts.values())).sum()
            (gradient,) = torch.autograd.grad(value * SCALE, after)
        straight = (made * (gradient / SCALE)).sum()
        return value.detach() + straight - straight.detach(), {name: part.detach() for name, part in parts.items()}

    def level(self, spread: Tensor) -> Tensor:
        """Noise levels of a step on all domains."""
        low, high = self.config.lowest_level, self.config.highest_level
        return low + (high - low) * spread

    def parts(self, before: Tensor, after: Tensor, batch: Mapping[str, Tensor], buckets: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, of clean latents without and with adapters (b, c, h, w), by name."""
        config, found = self.config, {}
        terms = []
        for encoder, references in zip(self.features, self.references, strict=True):
            with torch.no_grad():
                sources = encoder(before, batch)
            targets = encoder(after, batch)
            for i, bucket in enumerate(buckets.tolist()):
                terms.append(self.loss(sources[i : i + 1], targets[i : i + 1], references[bucket]))
        found["loss_hybrid"] = torch.cat(terms).mean() * len(self.features)
        if config.structure_weight:
            found["loss_structure"] = config.structure_weight * structure_loss(before, after).mean()
        return found

    def loss(self, source: Tensor, target: Tensor, seen: Reference) -> Tensor:
        """(b, d), (b, d) -> (b,) by what the options ask for, in the features of one encoder."""
        kind = self.config.hybrid_loss
        if kind == "direction":
            return translation_loss(source, target, seen.way)
        if kind == "coordinates":
            return coordinates_loss(source, target, seen.read)
        total = displacement_loss(source, target, seen.way) if kind != "subspace" else torch.zeros(len(target))
        if kind in ("subspace", "both"):
            for span, start in zip(seen.spans, seen.starts, strict=True):
                straight = self.config.direction_weight * direction_loss(source, target, span)
                total = total + (distance_loss(target, span) / start + straight) / len(seen.spans)
        return total

    @torch.no_grad()
    def _look(self, base: Base, dataset: CachedImages, adapters: AdapterSet, encoder: Features) -> list[Reference]:
        """The references of an encoder for each part of the noise levels. Raises ValueError if they are one."""
        count, found, said = self.config.level_buckets, [], []
        with adapters.bypassed():
            for bucket in range(count):
                spread = (bucket + 0.5) / count
                seen = {name: self._features(base, dataset, encoder, name, spread) for name in self.domains}
                spans = [
                    domain_span(seen[name], f"{name}, as {encoder.name} sees it", self.config.subspace_energy)
                    for name in self.names
                ]
                source = seen[SOURCE]
                starts = [max(float(distance_loss(source, span).mean()), 1e-6) for span in spans]
                read = coordinates(source, [seen[name] for name in self.names])
                found.append(Reference(spans, translation(source.mean(0), spans), starts, read))
                said.append(separability(source, spans))
        self.report(encoder, [ratios for ratios, _ in said], max(cosine for _, cosine in said))
        return found

    def report(self, encoder: Features, ratios: Sequence[Sequence[float]], cosine: float) -> None:
        """Log how well an encoder tells domains apart; if it does not, keep the reason."""
        means = {name: sum(own) / len(own) for name, own in zip(self.names, zip(*ratios, strict=True), strict=True)}
        self.separability = {**getattr(self, "separability", {}), encoder.name: (means, cosine)}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
        weakest = min(means, key=means.__getitem__)
        line = f"Encoder {encoder.name}: separability {shown}; largest cosine of two ways {cosine:.2f}"
        least = self.config.least_separability
        if means[weakest] < least or (least and cosine > ALIKE):
            why = f"{weakest} is as the source to it" if means[weakest] < least else "two domains are one to it"
            self.hopeless.append(
                f"--encoder {encoder.name} cannot tell the domains apart: {why} ({line}); give another, or lower "
                f"--least_separability {least}"
            )
        LOG.info(f"{line}{'; weak, below 1' if means[weakest] < WEAK else ''}")

    def _features(self, base: Base, dataset: CachedImages, encoder: Features, domain: str, spread: float) -> Tensor:
        """(n, d): the examples of a domain as the frozen base makes them out of this much noise."""
        own = [example for example in dataset.examples if example.domain == domain]
        rows = [Row(e, 0, e.prompt, row_seed(self.config.seed, i, "reference"), spread) for i, e in enumerate(own)]
        found = []
        for size in dict.fromkeys(example.bucket for example in own):
            same = [row for row in rows if row.example.bucket == size]
            for start in range(0, len(same), AT_ONCE):
                batch = dataset.gather(same[start : start + AT_ONCE])
                device = next(base.denoiser.parameters()).device
                batch = {name: value if name == "seeds" else value.to(device) for name, value in batch.items()}
                levels = base.spread_at(self.level(batch["spread"]), batch["moments"])
                clean = base.predict(base.denoiser, {**batch, "spread": levels}).denoised()
                found.append(encoder(clean, batch))
        return torch.cat(found)


class Foreseen(Directional):
    """A step on all domains as far as its memory goes: the same forwards and features, compared with no references."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(
        self, base: Base, denoiser: nn.Module, adapters: AdapterSet, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.features = make_features(self.config.encoder, base, batch["moments"].device)
        self.references = [dict.fromkeys(range(self.config.level_buckets)) for _ in self.features]
        return self.on_all(base, denoiser, adapters, batch)

    def loss(self, source: Tensor, target: Tensor, seen: Any) -> Tensor:
        return (target - source).square().sum(-1)
