"""Train the pocket base and the ruler's encoders from the first pixel to the last weight.

Each stage resumes where it was interrupted; `python train/pocket.py` alone does whatever is still missing. One seeded
process, on the GPU if there is one. Progress is logged as one JSON object a line in <work_dir>/log.jsonl.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from train.world.captions import POOLS
from train.world.encoder_stages import EncoderStages
from train.world.export import export_pipeline
from train.world.gate import measure, table
from train.world.learn import Latents, Leg, PocketTraining, samples_seen, save_atomically, total_steps, train_decoder
from train.world.nets import build_scheduler, build_text_encoder, build_unet, build_vae, fit_pca, patches, write_pca
from train.world.oracle import Oracle, train_oracle
from train.world.run import SIZE
from train.world.tokens import MAX_LENGTH

STAGES = ("data", "vae", "unet", "gate", "export", "encoder", "clip")
# Shares of the pools plain, patterned, styled, pairs.
LEGS = (
    Leg(36_000, 2e-3, (0.6, 0.15, 0.25, 0.0), batch=48, floor=0.1),
    Leg(110_400, 2e-3, (0.15, 0.15, 0.66, 0.04), batch=48),
)


class Pocket(EncoderStages):
    """The stages of the base, then those of the encoders."""

    _vae: AutoencoderKL | None = None

    def data(self) -> None:
        """Draw all pools."""
        for name in POOLS:
            self.pool(name)

    def vae(self) -> AutoencoderKL:
        """The AutoencoderKL: patch PCA written into the encoder, decoder trained (or taken up) from the work folder."""
        images = torch.from_numpy(np.concatenate([self.pool(name)["images"] for name in POOLS])).permute(0, 3, 1, 2)
        torch.manual_seed(self.options.seed)
        vae = build_vae(SIZE)
        subset = images[:: max(1, len(images) // 3000)].float() / 127.5 - 1
        write_pca(vae, *fit_pca(subset))
        vae = vae.to(self.device)
        train_decoder(vae, images, self.options.vae_steps, self.options.seed, self.folder / "vae.pt", self.log)
        return vae.requires_grad_(False)

    def latents(self) -> list[Latents]:
        """All pools as latents and token ids, in memory; latents are computed by the encoder's own rows."""
        images = np.concatenate([self.pool(name)["images"] for name in POOLS])
        rows, mean = fit_pca(
            torch.from_numpy(images[:: max(1, len(images) // 3000)]).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        pools = []
        for name in POOLS:
            pool = self.pool(name)
            x = torch.from_numpy(pool["images"]).permute(0, 3, 1, 2)
            z = [(patches(part.float() / 127.5 - 1) - mean) @ rows.T for part in x.split(512)]
            side = SIZE // 4
            z = torch.cat(z).reshape(-1, side, side, len(rows)).permute(0, 3, 1, 2).contiguous()
            pools.append(Latents(z.half(), torch.from_numpy(pool["tokens"])))
        return pools

    def training(self) -> PocketTraining:
        """UNet and text encoder of this seed, taken up from the checkpoint if there is one."""
        torch.manual_seed(self.options.seed)
        text, unet = build_text_encoder(self.tokenizer).to(self.device), build_unet().to(self.device)
        empty = self.tokenizer("", padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids[0]
        alphas = build_scheduler().alphas_cumprod
        training = PocketTraining(unet, text, alphas, empty, self.options.seed, self.options.compile)
        if (self.folder / "unet.pt").exists():
            training.load(torch.load(self.folder / "unet.pt", map_location=self.device, weights_only=True))
        return training

    def unet(self) -> None:
        """Train UNet and text encoder through the curriculum, with a checkpoint every few minutes."""
        pools, training = self.latents(), self.training()
        end = total_steps(LEGS) if self.options.until is None else min(self.options.until, total_steps(LEGS))
        losses: list[float] = []
        began = saved = time.perf_counter()
        while training.done < end:
            losses.append(training.step(pools, LEGS))
            if training.done % 50 == 0 or training.done == end:
                rate = len(losses) / (time.perf_counter() - began)
                self.log(
                    {"stage": "unet", "step": training.done, "loss": sum(losses) / len(losses), "steps_per_s": rate}
                )
                losses, began = [], time.perf_counter()
            if time.perf_counter() - saved > self.options.save_every or training.done == end:
                save_atomically(training.state(), self.folder / "unet.pt")
                saved = time.perf_counter()

    def pipeline(self) -> StableDiffusionPipeline:
        """The pipeline of the averaged weights, fp32."""
        training = self.training()
        unet, text = training.averaged
        return StableDiffusionPipeline(
            vae=self.vae(),
            text_encoder=text.eval(),
            tokenizer=self.tokenizer,
            unet=unet.eval(),
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def oracle(self) -> Oracle:
        """The judge, trained on the single-object pools, or taken up from the work folder."""
        arrays = [self.pool(name) for name in POOLS[:3]]
        images = torch.from_numpy(np.concatenate([pool["images"] for pool in arrays])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(np.concatenate([pool["labels"] for pool in arrays]))
        path, steps = self.folder / "oracle.pt", self.options.oracle_steps
        return train_oracle(images, labels, steps, self.options.seed, path, self.log, self.round_trip)

    @torch.no_grad()
    def round_trip(self, images: torch.Tensor) -> torch.Tensor:
        """Images through the VAE and back, so that the oracle does not mind the decoder's softness."""
        if self._vae is None:
            self._vae = self.vae().cpu()
        return self._vae.decode(self._vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)

    def gate(self) -> None:
        """Score fresh prompts with the oracle; writes gate.json and gate.png."""
        options = self.options
        scores = measure(self.pipeline(), self.oracle(), options.prompts, options.guidance_scale, self.folder)
        print(table(scores))
        self.log({"stage": "gate", "passes": scores["passes"], **scores["pocket"]})

    def export(self) -> None:
        """Write the fp16 pipeline folder with its model card."""
        done = self.training().done
        export_pipeline(self.pipeline(), self.folder, self.options.output_dir, samples_seen(LEGS, done))


def main(arguments: list[str] | None = None) -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="default: all, in order")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/pocket"), help="data, checkpoints, log")
    parser.add_argument("--output_dir", type=Path, default=Path("pipelines/pocket"), help="where export writes")
    parser.add_argument("--seed", type=int, default=0, help="decides every pixel and weight")
    parser.add_argument("--images", type=int, default=8000, help="images in each pool (pairs: a quarter)")
    parser.add_argument("--vae_steps", type=int, default=600, help="optimizer steps of the decoder, 16 images each")
    parser.add_argument("--families", type=int, default=1600, help="of three look-alikes, 12 images each")
    parser.add_argument("--oracle_steps", type=int, default=900, help="optimizer steps of the judge, 64 images each")
    parser.add_argument(
        "--until", type=int, default=None, help="stop the UNet at this step; default: end of curriculum"
    )
    parser.add_argument("--save_every", type=float, default=120, help="seconds between checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw; changes speed only")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more than one stalls on a busy machine")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet")
    parser.add_argument("--prompts", type=int, default=200, help="fresh prompts of the gate")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="guidance of the gate")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    run = Pocket(options)
    for stage in options.stages:
        getattr(run, stage)()


if __name__ == "__main__":
    main()
