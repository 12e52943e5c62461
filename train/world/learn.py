"""The two trainings of the pocket base, functions of a seed, exactly resumable: VAE decoder; UNet with text encoder."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from train.world.muon import Muon, split_parameters

Log = Callable[[dict], None]


@dataclass(frozen=True)
class Leg:
    """A stretch of the curriculum: samples, a peak learning rate that falls to `floor` of it, shares of the pools."""

    samples: int
    lr: float
    shares: tuple[float, ...] = ()
    batch: int = 32
    floor: float = 0.0


@dataclass
class Latents:
    """One pool: latents (n, 12, 12, 12) and token ids (n, captions, 32)."""

    latents: Tensor
    tokens: Tensor


def save_atomically(state: dict, path: Path) -> None:
    """Write a checkpoint so that a kill at any instant leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def generator(seed: int, step: int, device: str = "cpu") -> torch.Generator:
    """The random stream of one step: a resumed run draws what an uninterrupted one would have drawn."""
    return torch.Generator(device).manual_seed(seed * 10_000_019 + step)


def train_decoder(
    vae: AutoencoderKL, images: Tensor, steps: int, seed: int, path: Path, log: Log, batch: int = 16, every: int = 100
) -> None:
    """Fit the decoder to a fixed encoder: images (n, 3, h, w) uint8; L1 + L2 + gradient loss under latents."""
    device = str(next(vae.parameters()).device)
    decoder, start, began = vae.decoder, 0, time.perf_counter()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, weight_decay=1e-4)
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, steps):
        random = generator(seed, step)
        x = images[torch.randint(len(images), (batch,), generator=random)].to(device).float() / 127.5 - 1
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            level = 0.12 * torch.rand(batch, 1, 1, 1, generator=random)
            z = z + (level * torch.randn(z.shape, generator=random)).to(device)
        error = decoder(z) - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * edges
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            state = {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_atomically(state, path)
            psnr = -10 * torch.log10(error.detach().square().mean() / 4).item()
            seconds = time.perf_counter() - began
            log({"stage": "vae", "step": step + 1, "loss": loss.item(), "psnr": psnr, "seconds": seconds})


def place(legs: tuple[Leg, ...], step: int) -> tuple[Leg, float]:
    """The leg of a step and its learning rate (warm-up over a thirtieth, then linear); a new leg extends a run."""
    here = step
    for leg in legs:
        steps = leg.samples // leg.batch
        if here < steps:
            warm = max(1, steps // 30)
            fall = 1 - max(0, here - warm) / max(1, steps - warm)
            return leg, leg.lr * min((here + 1) / warm, leg.floor + (1 - leg.floor) * fall)
        here -= steps
    raise ValueError(f"step {step} lies behind the last leg of the curriculum")


def total_steps(legs: tuple[Leg, ...]) -> int:
    """Optimizer steps of all legs."""
    return sum(leg.samples // leg.batch for leg in legs)


def samples_seen(legs: tuple[Leg, ...], steps: int) -> int:
    """Samples behind `steps` optimizer steps."""
    seen = 0
    for leg in legs:
        here = min(steps, leg.samples // leg.batch)
        seen, steps = seen + here * leg.batch, steps - here
    return seen


class PocketTraining:
    """UNet and text encoder with optimizers and averages; one call of `step` is one optimizer step."""

    def __init__(
        self, unet: nn.Module, text: nn.Module, alphas: Tensor, empty: Tensor, seed: int, fast: bool = False
    ) -> None:
        self.device = str(next(unet.parameters()).device)
        self.unet = unet
        self.text, self.alphas, self.empty, self.seed = text, alphas.to(self.device), empty, seed
        self.averaged = copy.deepcopy(nn.ModuleList([unet, text])).requires_grad_(False)
        self.modules = nn.ModuleList([unet, text])
        matrices, rest = split_parameters([unet, text])
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=1e-3, weight_decay=1e-3, betas=(0.9, 0.98), fused=True),
            Muon(matrices, lr=1e-3, decay=0.05),
        ]
        self.done = 0
        self.call = torch.compile(unet) if fast else unet

    def loss(self, pools: list[Latents], leg: Leg, random: torch.Generator) -> Tensor:
        """Mean squared error of v on one stratified batch; 10 % of the captions are dropped."""
        n = leg.batch
        shares = torch.tensor(leg.shares[: len(pools)])
        chosen = torch.multinomial(shares, n, replacement=True, generator=random)
        rows = torch.rand(n, generator=random)
        which = torch.randint(pools[0].tokens.shape[1], (n,), generator=random)
        picks = [(pools[k], int(rows[i] * len(pools[k].latents)), int(which[i])) for i, k in enumerate(chosen.tolist())]
        x = torch.stack([pool.latents[row] for pool, row, _ in picks]).float()
        tokens = torch.stack([pool.tokens[row, caption] for pool, row, caption in picks]).long()
        dropped = torch.rand(n, generator=random) < 0.1
        tokens[dropped] = self.empty
        steps = len(self.alphas)
        t = ((torch.arange(n) + torch.rand(n, generator=random)) / n * steps).long().clamp_max(steps - 1)
        noise = torch.randn(x.shape, generator=random)
        x, noise, t, tokens = (value.to(self.device) for value in (x, noise, t, tokens))
        a = self.alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        target = a.sqrt() * noise - (1 - a).sqrt() * x
        states = self.text(tokens).last_hidden_state
        return F.mse_loss(self.call(noisy, t, states, return_dict=False)[0], target)

    def step(self, pools: list[Latents], legs: tuple[Leg, ...]) -> float:
        """One optimizer step; returns the loss."""
        leg, lr = place(legs, self.done)
        loss = self.loss(pools, leg, generator(self.seed, self.done))
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done += 1
        decay = min(0.999, 1 - 1 / (10 + 0.05 * self.done))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.modules.parameters()), 1 - decay)
        return loss.item()

    def state(self) -> dict:
        """Everything that the next step depends on."""
        parts = {"modules": self.modules, "averaged": self.averaged}
        return {"done": self.done, "optimizers": [o.state_dict() for o in self.optimizers]} | {
            name: part.state_dict() for name, part in parts.items()
        }

    def load(self, state: dict) -> None:
        """Take up a saved state."""
        self.modules.load_state_dict(state["modules"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done = state["done"]
