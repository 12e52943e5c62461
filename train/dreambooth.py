"""DreamBooth: teach a frozen text-to-image model one subject from a few pictures, by an adapter of any family.

    accelerate launch train/dreambooth.py --adapter wara

trains on the sample subject and the embedded base: no network, no GPU, about a minute on two CPU cores. Your own:

    accelerate launch train/dreambooth.py --adapter lora --output_dir my_cat_lora \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --instance_data_dir my_cat --instance_prompt "a photo of sks cat"

The output folder gets adapter.safetensors, pictures, loss.png, records.jsonl (a line of numbers per step), README.md (a
model card), config.toml, which repeats the run, and checkpoints, from which it goes on: --resume_from_checkpoint
latest.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_adapters import FAMILIES, AdapterConfig
from train import hub, preflight, results
from train.bases import BaseInfo, BaseOptions, inspect_base, load_base
from train.checkpoint import CheckpointOptions
from train.data import DataOptions, build_dataset, with_trigger
from train.domain_options import DomainOptions
from train.flags import AdapterOptions, parse
from train.keeper import Keeper
from train.launch import join_processes
from train.objective import LossOptions
from train.pilot import PilotOptions
from train.processes import make_accelerator, sharded
from train.progress import Interrupt, follow
from train.script import command
from train.settings import TrainOptions, settle
from train.tasks import attach, task_of
from train.trackers import TrackerOptions
from train.watch import Watch

LOG = logging.getLogger("train")
BOUND = (AdapterOptions, DomainOptions, BaseOptions, DataOptions, LossOptions, TrainOptions)
"""Options with which a run goes on as it began."""
WATCHED = (PilotOptions, TrackerOptions, hub.HubOptions, preflight.PreflightOptions)


@dataclass(frozen=True, kw_only=True)
class DreamBoothOptions(*BOUND, CheckpointOptions, results.ResultOptions, *WATCHED):
    """Everything that this script can be told, but the options of the family."""


def resolve(config: DreamBoothOptions, info: BaseInfo) -> DreamBoothOptions:
    """The options with every default that depends on another choice filled in."""
    guidance = info.guidance_scale if config.guidance_scale is None else config.guidance_scale
    chosen = {"output_dir": config.output_dir or Path(f"dreambooth-{config.adapter}"), "guidance_scale": guidance}
    return dataclasses.replace(with_trigger(config), resolution=config.resolution or info.side, **chosen)


def run(
    config: DreamBoothOptions, adapter: AdapterConfig, stop: Callable[[], bool] = lambda: False
) -> Generator[dict[str, float], None, results.Finished | None]:
    """Train one subject: yields the engine's records; writes the results; None is returned but on the main process."""
    task = task_of(config)
    task.check(config)  # before seconds of imports
    info = inspect_base(config)
    config = resolve(task.told(config), info)
    folder = task.read(config, info)
    config = task.shown(config, folder)
    accelerator = make_accelerator(config)
    config = settle(config, FAMILIES[task.family(config)], len(folder), accelerator.num_processes)
    attached = functools.partial(attach, task, config, adapter)
    keeper = Keeper(accelerator, config, adapter, BOUND, attached)
    config = preflight.check(accelerator, config, info, folder, attached)
    name = config.output_dir.resolve().name.replace(".", "-") or config.adapter
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    with Watch(accelerator, config, name, folder) as watch:
        folder = task.generate(accelerator, config, info, folder, stop)
        base = load_base(info, config, accelerator.device, dtype)
        dataset = build_dataset(accelerator, base, config, folder, live_texts=config.live_texts)
        adapters = keeper.adapters(base, dataset, name)
        trainer = task.trainer(accelerator, config, base, adapters, dataset, name)
        trained = sum(parameter.numel() for parameter in trainer.parameters)
        finished = results.Finished(base, info.source, config, adapter, name, folder, watch.records, trained)
        keep = keeper.follow(trainer, finished.save)
        watch.begin(finished, trainer)
        for record in trainer.train(lambda: stop() or watch.stop, keep):
            yield watch(record)
    with trainer.inference():
        finished = watch.settle()
        if accelerator.is_main_process:
            results.write(finished)
        elif sharded(accelerator):
            results.assist(finished)
    return finished if accelerator.is_main_process else None


def train(argv: Sequence[str] | None, description: str | None) -> None:
    """Run a command line; `--help` begins with `description`."""
    config, adapter = parse(DreamBoothOptions, description, argv)
    with Interrupt() as interrupt:
        finished = follow(run(config, adapter, interrupt), config.max_train_steps, interrupt)
    if finished is not None:
        LOG.info(results.next_steps(finished))
        hub.push(finished.config)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    train(argv, __doc__)


if __name__ == "__main__":
    join_processes()
    sys.exit(main())
