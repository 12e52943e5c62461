"""From the options of a run to its dataset."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from train.data.cache import check_cache_dir
from train.data.dataset import CachedImages
from train.data.folder import Folder
from train.data.prior import class_examples
from train.data.sources import list_sources

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.bases import Base

LOG = logging.getLogger("train")


def check_data(config: Any) -> None:
    """Raise, in one line, for data that is not there or options that contradict each other; nothing is decoded."""
    config.check_prior()
    check_cache_dir(config.latents_cache_dir)
    list_sources(config)


def build_dataset(
    accelerator: Accelerator, base: Base, config: Any, folder: Folder, *, live_texts: bool = False
) -> CachedImages:
    """Encode the pictures, captions and class images of a run. With a cache on disk, the main process fills it."""
    group = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    classes = class_examples(config, folder.buckets)
    prompt = config.class_prompt if config.with_prior_preservation else None
    settings = {"group": group, "class_prompt": prompt, "class_examples": classes, "live_texts": live_texts}
    shared = config.latents_cache_dir is not None
    with accelerator.main_process_first() if shared else contextlib.nullcontext():
        dataset = CachedImages(base, folder.examples, config, **settings)
    if accelerator.is_main_process:
        for line in dataset.store.report():
            LOG.info(line)
    return dataset
