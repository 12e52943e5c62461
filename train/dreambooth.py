"""DreamBooth: teach a frozen text-to-image model one subject from a few pictures, by an adapter of any family.

    accelerate launch train/dreambooth.py --adapter wara

trains on the bundled sample subject and the embedded base: no network, no GPU, about a minute on two CPU cores.
Your own subject, on a base of your own:

    accelerate launch train/dreambooth.py --adapter lora --output_dir my_cat_lora \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --instance_data_dir my_cat --instance_prompt "a photo of sks cat"

The output folder gets adapter.safetensors, grid.png (before and after), loss.png, image_0.png ..., README.md (a model
card) and config.toml, which repeats the run: --config config.toml. Each family has options of its own; they are listed
with --adapter FAMILY --help.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from diffusion_adapters import FAMILIES, AdapterConfig, AdapterSet, add_adapter
from train import hub, preflight, results
from train.bases import BaseInfo, BaseOptions, inspect_base, load_base
from train.data import CachedImages, DataOptions, list_folder, read_folder
from train.engine import TrainOptions, learning_rate, make_accelerator, train
from train.flags import AdapterOptions, parse
from train.progress import Interrupt, explain, follow, show_log
from train.trackers import TrackerOptions
from train.watch import Watch

LOG = logging.getLogger("train")


@dataclass(frozen=True, kw_only=True)
class DreamBoothOptions(
    AdapterOptions, BaseOptions, DataOptions, TrainOptions, results.ResultOptions, TrackerOptions, hub.HubOptions
):
    """Everything that this script can be told, but the options of the family."""


def resolve(config: DreamBoothOptions, info: BaseInfo) -> DreamBoothOptions:
    """The options with every default that depends on another choice filled in. Raises ValueError."""
    side = config.resolution or info.side
    if side % info.multiple:
        near = max(side // info.multiple, 1) * info.multiple
        raise ValueError(f"--resolution {side} must be a multiple of {info.multiple} for this base, such as {near}")
    folder = config.output_dir or Path(f"dreambooth-{config.adapter}")
    return dataclasses.replace(config, resolution=side, output_dir=folder)


def attach(denoiser: nn.Module, name: str, config: DreamBoothOptions, adapter: AdapterConfig) -> AdapterSet:
    """A new adapter whose start depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        targets = config.target_modules
        return add_adapter(denoiser, name, config.adapter, target_modules=targets, **adapter.as_dict())


def run(
    config: DreamBoothOptions, adapter: AdapterConfig, stop: Callable[[], bool] = lambda: False
) -> Generator[dict[str, float], None, results.Finished | None]:
    """Train one subject: yields the engine's records; writes the results; None is returned but on the main process."""
    list_folder(config)  # before seconds of imports
    info = inspect_base(config)
    config = resolve(config, info)
    folder = read_folder(config, config.resolution, config.seed)
    accelerator = make_accelerator(config)
    rate = learning_rate(config, FAMILIES[config.adapter], accelerator.num_processes)
    config = dataclasses.replace(config, learning_rate=rate, scale_lr=False)
    config = preflight.check(accelerator, config, info, folder, lambda blank: attach(blank, "blank", config, adapter))
    name = config.output_dir.resolve().name.replace(".", "-") or config.adapter
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    with Watch(accelerator, config, adapter, name, len(folder.examples)) as watch:
        base = load_base(info, config, accelerator.device, dtype)
        dataset = CachedImages(base, folder.examples)
        adapters = attach(base.denoiser, name, config, adapter)
        watch.begin(base)
        for record in train(accelerator, config, base, adapters, dataset, rate=rate, stop=lambda: stop() or watch.stop):
            yield watch(record)
    if not accelerator.is_main_process:
        return None
    trained = sum(parameter.numel() for parameter in adapters.parameters())
    finished = results.Finished(base, info.source, config, adapter, name, folder, watch.records, trained)
    results.write(finished)
    return finished


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if it went well, 2 with one line on stderr if not."""
    show_log()
    try:
        config, adapter = parse(DreamBoothOptions, __doc__, argv)
        with Interrupt() as interrupt:
            finished = follow(run(config, adapter, interrupt), config.max_train_steps, interrupt)
        if finished is not None:
            LOG.info(results.next_steps(finished))
            hub.push(finished.config)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
