"""The oracle: a small CNN that reads a picture's attributes, the judge of the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.world.captions import ATTRIBUTES
from train.world.learn import Log, generator, save_atomically

Blur = Callable[[Tensor], Tensor]


class Oracle(nn.Module):
    """(n, 3, 48, 48) in [-1, 1] -> one (n, classes) logit tensor for each attribute."""

    def __init__(self, width: int = 32, attributes: Mapping[str, Sequence[str]] = ATTRIBUTES) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out, stride in ((width, 1), (width, 2), (2 * width, 1), (2 * width, 2), (4 * width, 1), (4 * width, 2)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.body = nn.Sequential(*layers)
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(channels * 36, 192), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(values)) for name, values in attributes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.neck(self.body(images))
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """(n, 3, 48, 48) in [-1, 1] -> (n, attributes) class indices in the order of its attributes."""
        self.eval()
        return torch.stack([logits.argmax(1) for logits in self(images).values()], 1)


def accuracy(oracle: Oracle, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of right answers for each attribute; images (n, 3, 48, 48) in [-1, 1], labels (n, 5)."""
    right = torch.cat([oracle.read(part) for part in images.split(100)]) == labels
    return dict(zip(ATTRIBUTES, right.float().mean(0).tolist(), strict=True))


def train_oracle(
    images: Tensor,
    labels: Tensor,
    steps: int,
    seed: int,
    path: Path,
    log: Log,
    blur: Blur | None = None,
    batch: int = 64,
    attributes: Mapping[str, Sequence[str]] = ATTRIBUTES,
) -> Oracle:
    """Fit an oracle to uint8 renders with noise and shifts; a fifth of the batches pass through `blur` (the VAE)."""
    torch.manual_seed(seed)
    oracle, start = Oracle(attributes=attributes), 0
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=2e-3, weight_decay=0.02)
    if path.exists():
        state = torch.load(path, weights_only=True)
        oracle.load_state_dict(state["oracle"])
        start = state["step"]
        if start >= steps:
            return oracle.eval()
        optimizer.load_state_dict(state["optimizer"])
    for step in range(start, steps):
        random = generator(seed + 7, step)
        rows = torch.randint(len(images), (batch,), generator=random)
        x, y = images[rows].float() / 127.5 - 1, labels[rows].long()
        if blur is not None and step % 5 == 0:
            x = blur(x)
        dy, dx = torch.randint(-2, 3, (2,), generator=random).tolist()
        x = F.pad(x, (2, 2, 2, 2), mode="replicate")[:, :, 2 + dy : 50 + dy, 2 + dx : 50 + dx]
        x = x + 0.15 * torch.rand(batch, 1, 1, 1, generator=random) * torch.randn(x.shape, generator=random)
        logits = oracle.train()(x)
        loss = sum(F.cross_entropy(logits[name], y[:, i]) for i, name in enumerate(attributes))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / (0.3 * steps), 1.4 * (1 - step / steps), 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {"oracle": oracle.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_atomically(state, path)
            log({"stage": "oracle", "step": step + 1, "loss": loss.item()})
    return oracle.eval()
