"""What a run leaves in its output folder, in the order of its worth: adapter, configuration, plot, pictures, card."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from diffusion_adapters import export_lora, save_adapter, set_adapters
from diffusion_adapters.adapter import AdapterConfig
from diffusion_adapters.attach import adapter_sets
from diffusion_adapters.options import Options, option
from train import card, output, report
from train.bases import Base, sample
from train.data import Folder
from train.domains import in_turn
from train.flags import to_toml

LOG = logging.getLogger("train")
LORA_FILE = "pytorch_lora_weights.safetensors"
ELSEWHERE = ("under water", "in a desert", "in a studio")
"""Where the subject is put to see whether the adapter knows it apart from its pictures."""


@dataclass(frozen=True, kw_only=True)
class ResultOptions(Options):
    title: ClassVar[str] = "results"
    output_dir: Path | None = option(  # noqa: RUF009
        None, "folder for the results (default: dreambooth-ADAPTER)"
    )
    validation_prompt: tuple[str, ...] | None = option(
        None, "prompts of the pictures made at the end (default: the instance prompt, as it is and in three places)"
    )
    num_validation_images: int = option(2, "pictures of each validation prompt, at fixed seeds; 0 makes none", ge=0)
    validation_steps: int | None = option(None, "steps between pictures made while training (default: none)", ge=1)
    validation_epochs: int | None = option(None, "the same, in passes over the training pictures", ge=1)
    validation_adapter_weights: tuple[float, ...] = option(
        (1.0,), "weights of the adapter in the pictures made while training; 0 is the base"
    )
    num_inference_steps: int = option(25, "denoising steps of those pictures", ge=1)
    guidance_scale: float | None = option(
        None, "how strongly those pictures follow their prompt (default: the pipeline's own)", ge=0
    )


@dataclass(frozen=True)
class Finished:
    """A training run that is over."""

    base: Base
    source: str
    config: Any
    adapter: AdapterConfig
    name: str
    folder: Folder
    records: Sequence[Mapping[str, float]]
    trained: int
    picked: int | None = None
    """The step whose adapter it is, if not the last."""

    @property
    def loss(self) -> float:
        """Mean of the last twentieth of the steps, at least one."""
        tail = self.records[-max(1, len(self.records) // 20) :]
        return sum(record["loss"] for record in tail) / len(tail)

    @property
    def rate(self) -> float:
        """The learning rate; of a hybrid of given parts that of what is trained."""
        config = self.config
        return config.coefficient_lr if config.several and config.part else config.learning_rate

    @property
    def domains(self) -> dict[str, int]:
        """Pictures by domain, if there are several."""
        return Counter(example.domain for example in in_turn(self.folder)) if self.config.several else {}

    @property
    def subject(self) -> str:
        """What it was trained on, in words."""
        return ", ".join(self.domains) or self.config.instance_prompt

    def save(self, path: Path) -> Path:
        """Write the adapter's file, with what is known of its training."""
        config = self.config
        facts = {name: getattr(config, name) for name in ("train_batch_size", "resolution", "seed")}
        facts |= {
            "learning_rate": self.rate,
            "steps": self.picked or len(self.records),
            "pictures": len(in_turn(self.folder)),
            "loss": round(self.loss, 6),
        }
        trigger = None if config.several else config.instance_prompt  # no word calls up a domain
        return save_adapter(self.base.pipeline, self.name, path, trigger=trigger, training=facts)


def validation_prompts(config: Any) -> list[str]:
    """The prompts of the pictures made at the end."""
    if config.validation_prompt is not None:
        return list(config.validation_prompt)
    return [config.instance_prompt, *(f"{config.instance_prompt} {place}" for place in ELSEWHERE)]


def save_config(config: Any, adapter: AdapterConfig) -> Path:
    """Write what repeats the run, beside its results and before them. Secrets are left out."""
    return output.write(
        config.output_dir / "config.toml", lambda path: path.write_text(to_toml(config, adapter), "utf-8")
    )


def shown_prompts(run: Finished) -> list[str]:
    """The prompts of the pictures that are made: none if no pictures are asked for."""
    return validation_prompts(run.config) if run.config.num_validation_images else []


def save_plain(run: Finished) -> bool:
    """Write the adapter as the plain LoRA that stock `pipe.load_lora_weights(folder)` finds, if it is one exactly."""
    adapters = [adapter for own in adapter_sets(run.base.pipeline).values() for adapter in own.of(run.name).values()]
    if any(a.low_rank() is None or a.transforms_input or a.adds_output for a in adapters):
        return False
    export_lora(run.base.pipeline, run.name, run.config.output_dir / LORA_FILE)
    return True


def assist(run: Finished) -> None:
    """Take part in what `write` does on the main process, where a forward needs every process."""
    pictures(run, shown_prompts(run))


def write(run: Finished) -> Path:
    """Write everything; returns the adapter's file. Raises OSError, each file being whole or absent."""
    config, folder = run.config, run.config.output_dir
    file = run.save(folder / "adapter.safetensors")
    plain = save_plain(run)
    save_config(config, run.adapter)
    output.write(folder / "loss.png", lambda path: report.loss_plot(run.records, path))
    prompts = shown_prompts(run)
    if prompts:
        LOG.info(f"Making {2 * len(prompts) * config.num_validation_images} pictures, without and with the adapter")
    before, after = pictures(run, prompts)
    for i, images in enumerate(after):
        output.write(folder / f"image_{i}.png", lambda path, image=images[0]: image.save(path, "PNG"))
    shown = [example.images[0] for example in in_turn(run.folder)[:16]]  # each is opened anew
    title = f"{config.adapter}, {run.picked or len(run.records)} steps: {run.subject}"
    if after:
        for path in (file, folder / LORA_FILE) if plain else (file,):
            output.add_thumbnail(path, after[0][0])
    sheet = report.grid(shown, list(zip(prompts, before, after, strict=True)), title)
    output.write(folder / "grid.png", lambda path: sheet.save(path, "PNG"))
    output.write(folder / "README.md", lambda path: path.write_text(_card(run, prompts, plain), "utf-8"))
    return file


def pictures(run: Finished, prompts: Sequence[str]) -> tuple[list[list[Image.Image]], list[list[Image.Image]]]:
    """For each prompt the base's pictures and, from the same seeds, those with the adapter."""
    config, count = run.config, run.config.num_validation_images
    rows = [prompt for prompt in prompts for _ in range(count)]
    seeds = [config.seed + i for _ in prompts for i in range(count)]
    made = []
    for names in ([], [run.name]):
        set_adapters(run.base.pipeline, names)
        settings = {"steps": config.num_inference_steps, "guidance_scale": config.guidance_scale}
        images = sample(run.base, rows, seeds, side=config.resolution, **settings) if rows else []
        made.append([images[i * count : (i + 1) * count] for i in range(len(prompts))])
    return made[0], made[1]


def _settings(run: Finished, file: str) -> dict[str, Any]:
    config = run.config
    own = config.validation_prompt is None or config.several
    prompt = validation_prompts(config)[-1] if own else config.instance_prompt
    steps, guidance = config.num_inference_steps, config.guidance_scale
    own = {"base": run.source, "file": file, "prompt": prompt, "steps": steps, "guidance": guidance}
    return {**own, "domains": list(run.domains)}


def _card(run: Finished, prompts: Sequence[str], plain: bool) -> str:
    config = run.config
    folder = config.output_dir
    model = config.pretrained_model_name_or_path
    repository = config.hub_model_id if config.push_to_hub else None
    here = Path() if folder.is_absolute() or repository else folder
    settings = {**_settings(run, str(here / "adapter.safetensors")), "repository": repository}
    facts = {
        "title": f"{run.name}: {run.subject}",
        "family": config.adapter,
        "base_model": model,
        "base": f"`{model}`" if Path(model).exists() else f"[{model}](https://huggingface.co/{model})",
        "config": folder / "config.toml",
        "prompt": config.instance_prompt,
        "count": len(run.folder.examples),
        "domains": run.domains,
        "steps": run.picked or len(run.records),
        "trained": run.trained,
        "rate": run.rate,
        "seed": config.seed,
        "loss": run.loss,
        "plain": card.plain(repository or str(folder if not folder.is_absolute() else ".")) if plain else "",
        "usage": card.usage(**settings),
        "command": card.command(**settings),
    }
    return card.model_card(facts, prompts)


def next_steps(run: Finished) -> str:
    """What to type next."""
    folder = run.config.output_dir
    settings = _settings(run, str(folder / "adapter.safetensors"))
    size = os.stat(settings["file"]).st_size / 1024  # noqa: PTH116
    code = "".join(f"    {line}\n" for line in card.usage(**settings).splitlines() if line)
    return (
        f"\nSaved {settings['file']} ({size:.0f} KiB). See {folder / 'grid.png'} for before and after.\n\n"
        f"Use it in Python:\n{code}\nFrom the shell:\n    {card.command(**settings)}\n\nIn the app:\n    python -m ui\n"
    )
