"""The stages `encoder` and `clip`: the ruler's encoders, trained on renders, some of them through the exported VAE."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPModel

from train.world.captions import ATTRIBUTES, POOLS, Attributes, prompt, sample_attributes
from train.world.cards import checksums
from train.world.contrast import Heads, Plan, caption_loss, captions_for, disturb, fit, identity_loss
from train.world.draw import render
from train.world.encoder_card import refresh_card, write_clip_card, write_encoder_card
from train.world.encoder_scores import identity_scores, rare_token_shift, subject_places, zero_shot
from train.world.encoders import build_clip, build_encoder, frozen, save_clip, save_encoder
from train.world.gate import FRESH as GATE
from train.world.gate import fresh_attributes, sample, to_tensor
from train.world.learn import Leg
from train.world.run import SIZE, Run
from train.world.twins import LOOKS, SIBLINGS, VIEWS, Families, draw_families, read_families, write_families

BATCH = 96
ENCODER_LEGS = (Leg(450 * BATCH, 2e-3, batch=BATCH),)
CLIP_LEGS = (Leg(1600 * BATCH, 3e-3, batch=BATCH),)
SOFT = 5  # every fifth picture of a pool passes through the VAE


class EncoderStages(Run):
    """Runs after `export`: the folders stand in the pipeline's own folder, whose VAE makes pictures soft."""

    _exported: AutoencoderKL | None = None

    @torch.no_grad()
    def through_vae(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in [-1, 1] through the exported VAE and back."""
        if self._exported is None:
            self._exported = AutoencoderKL.from_pretrained(self.options.output_dir / "vae").to(self.device)
        latents = self._exported.encode(images.to(self.device)).latent_dist.mode()
        return self._exported.decode(latents).sample.clamp(-1, 1).cpu()

    def soften(self, pictures: np.ndarray) -> np.ndarray:
        """(n, h, w, 3) uint8 through the exported VAE and back."""
        parts = [
            (self.through_vae(part.float() / 127.5 - 1) * 127.5 + 127.5).round().byte()
            for part in torch.from_numpy(pictures).permute(0, 3, 1, 2).split(50)
        ]
        return torch.cat(parts).permute(0, 2, 3, 1).numpy()

    def cached(self, name: str, part: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that the exported weights of `part` decide: made once for these weights, then read."""
        digest = next(iter(checksums(self.options.output_dir / part).values()))
        path = self.folder / f"{name}_{digest[:12]}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, make())
            partial.replace(path)
        return np.load(path)

    def families(self) -> Families:
        """The look-alikes of this seed, the last view of each through the VAE; drawn if missing."""
        path = self.folder / "families.npz"
        if not path.exists():
            began, options = time.perf_counter(), self.options
            families = draw_families(options.seed, options.families, SIZE, options.workers)
            last = families.small[:, :, -1]
            families.small[:, :, -1] = self.soften(last.reshape(-1, *last.shape[2:])).reshape(last.shape)
            write_families(path, families)
            images, seconds = options.families * SIBLINGS * VIEWS, time.perf_counter() - began
            self.log({"stage": "data", "pool": "families", "images": images, "seconds": seconds})
        return read_families(path)

    def _plan(self, stage: str, legs: tuple[Leg, ...]) -> Plan:
        return Plan(stage, legs, self.options.seed + 11, self.options.save_every)

    def encoder(self) -> None:
        """Train the identity encoder on families of look-alikes and write its folder."""
        families = self.families()
        torch.manual_seed(self.options.seed)
        encoder = build_encoder().to(self.device)
        heads = Heads(encoder.config.hidden_sizes[-1], LOOKS).to(self.device)
        fit(
            nn.ModuleList([encoder, heads]),
            lambda random: identity_loss(encoder, heads, families, random),
            self._plan("encoder", ENCODER_LEGS),
            self.folder / "encoder.pt",
            self.log,
        )
        folder = self.options.output_dir / "encoder"
        save_encoder(frozen(encoder).cpu(), folder)
        scores = identity_scores(encoder, self.through_vae)
        self.log({"stage": "encoder scores", "top1": scores["real"]["top1"], "top1_vae": scores["vae"]["top1"]})
        write_encoder_card(folder, scores, self.folder, len(families.looks))
        refresh_card(self.options.output_dir)

    def contents(self) -> list[Attributes]:
        """What the pictures of all pools show, in the order of `pictures`."""
        contents = []
        for number, pool in enumerate(POOLS):
            streams = (
                np.random.default_rng([self.options.seed, number, i]) for i in range(len(self.pool(pool)["labels"]))
            )
            contents += [sample_attributes(rng, pool) for rng in streams]
        return contents

    def pictures(self) -> Tensor:
        """(n, 3, 48, 48) uint8 of all pools, every fifth through the VAE (cached)."""
        images = np.concatenate([self.pool(pool)["images"] for pool in POOLS])
        images[::SOFT] = self.cached("soft", "vae", lambda: self.soften(images[::SOFT]))
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def clip(self) -> None:
        """Train the tiny CLIP on all pools and write its folder."""
        images, contents = self.pictures(), self.contents()
        torch.manual_seed(self.options.seed + 1)
        clip = build_clip(self.tokenizer).to(self.device)
        heads = Heads(clip.config.vision_config.hidden_size, ATTRIBUTES).to(self.device)

        def loss(random: torch.Generator) -> Tensor:
            rows = torch.randint(len(images), (BATCH,), generator=random)
            chosen = [contents[row] for row in rows.tolist()]
            texts = captions_for(chosen, np.random.default_rng(random.initial_seed()))
            x = disturb(images[rows].float() / 127.5 - 1, random, 2).to(self.device)
            return caption_loss(clip, heads, x, chosen, texts, self.tokenizer)

        fit(nn.ModuleList([clip, heads]), loss, self._plan("clip", CLIP_LEGS), self.folder / "clip.pt", self.log)
        folder = self.options.output_dir / "clip"
        save_clip(frozen(clip).cpu(), self.tokenizer, folder)
        scores = self.clip_scores(clip)
        self.log({"stage": "clip scores", **scores["pocket"]["full"]})
        write_clip_card(folder, scores, self.folder, len(images))
        refresh_card(self.options.output_dir)

    def clip_scores(self, clip: CLIPModel) -> dict:
        """Everything that the CLIP's card says; pocket's pictures of the gate's prompts are sampled once."""
        contents = fresh_attributes(self.options.prompts)

        def draw() -> np.ndarray:
            pipeline = StableDiffusionPipeline.from_pretrained(self.options.output_dir)
            return np.stack([np.asarray(image) for image in sample(pipeline, [prompt(each) for each in contents])])

        drawn = torch.from_numpy(self.cached(f"pocket{len(contents)}", "unet", draw))
        real = to_tensor([render(content, np.random.default_rng([GATE, 2, i])) for i, content in enumerate(contents)])
        pictures = {
            "pocket": drawn.permute(0, 3, 1, 2).float() / 127.5 - 1,
            "real": real,
            "vae": torch.cat([self.through_vae(part) for part in real.split(50)]),
        }
        scores: dict = {name: zero_shot(clip, self.tokenizer, x, contents) for name, x in pictures.items()}
        scores["subject_places"] = subject_places(clip, self.tokenizer)
        scores["rare_token"] = rare_token_shift(clip, self.tokenizer, contents)
        return scores | {"prompts": len(contents)}
