"""When a run is kept as a checkpoint, and how a run goes on from one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from diffusion_adapters import AdapterSet, load_adapter
from diffusion_adapters.hooks import find_adapter_set
from diffusion_adapters.options import Options
from train import checkpoint, state
from train.bases import Base
from train.checkpoint import ADAPTER
from train.engine import Dataset, Trainer
from train.settings import MAY_CHANGE
from train.text import attach_text

LOG = logging.getLogger("train")


class Keeper:
    """Finds the checkpoint that a run goes on from, and writes one every so many steps and when it is stopped."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: Any,
        adapter: Options,
        groups: Iterable[type[Options]],
        attach: Callable[[Any, str], AdapterSet],
    ) -> None:
        """Before anything is loaded. `groups`: the options of `config` with which a run goes on as it began.

        `attach` puts a new adapter of a name into a pipeline. Raises FileNotFoundError and ValueError as
        `checkpoint.find` and `checkpoint.check_settings` do.
        """
        self.accelerator, self.config, self.attach = accelerator, config, attach
        self.on_checkpoint: Callable[[int, Path], object] | None = None
        """Called with step and folder, on each process, when a checkpoint has been written."""
        names = [name for group in groups for name, (kind, _) in group.kinds().items() if kind is not Path]
        values = config.as_dict() | adapter.as_dict() | {"num_processes": accelerator.num_processes}
        bound = [name for name in (*names, *adapter.as_dict(), "num_processes") if name not in MAY_CHANGE]
        self.settings = {name: values[name] for name in bound}
        if accelerator.is_main_process:
            checkpoint.recover(config.output_dir)
        accelerator.wait_for_everyone()
        self.start = checkpoint.find(config.output_dir, config.resume_from_checkpoint)
        if self.start is not None:
            checkpoint.check_settings(self.start, self.settings)

    def adapters(self, base: Base, dataset: Dataset, name: str) -> AdapterSet:
        """The adapter that is trained, attached: a new one, or that of the checkpoint.

        Raises ValueError if the base or the pictures are not those that the run began with.
        """
        self.settings |= contents(base, dataset, self.config.seed)
        if self.start is None:
            adapters = self.attach(base.pipeline, name)
            attach_text(base.pipeline, name, self.config)
            return adapters
        checkpoint.check_settings(self.start, self.settings)
        load_adapter(base.pipeline, self.start / ADAPTER, name, trainable=True)
        found = find_adapter_set(base.denoiser)
        assert found is not None
        return found

    def follow(self, trainer: Trainer, save_adapter: Callable[[Path], object]) -> Callable[[bool], bool]:
        """What `Trainer.train` calls after each step; a run that goes on is set to where it was."""
        if self.start is not None:
            trainer.load(self.start)

        def keep(stopping: bool) -> bool:
            every = self.config.checkpointing_steps
            if not every or (trainer.step % every and not stopping):
                return False
            main = self.accelerator.is_main_process
            (path,) = broadcast_object_list([self._write(trainer, save_adapter) if main else None])
            if path is not None and self.on_checkpoint is not None:
                self.on_checkpoint(trainer.step, path)
                self.accelerator.wait_for_everyone()
            return path is not None

        return keep

    def _write(self, trainer: Trainer, save_adapter: Callable[[Path], object]) -> Path | None:
        saved = trainer.state()

        def fill(folder: Path) -> None:
            with trainer.inference():
                save_adapter(folder / ADAPTER)
            state.write(saved, folder)

        size = state.size(saved) + state.size(trainer.adapters.state_dict())
        path = checkpoint.write(
            self.config.output_dir,
            trainer.step,
            fill,
            settings=self.settings,
            size=size,
            limit=self.config.checkpoints_total_limit,
        )
        if path is not None:
            LOG.info(f"Saved state to {path}")
        return path


def contents(base: Base, dataset: Dataset, seed: int) -> dict[str, str]:
    """Hashes of the base, by the first numbers of each parameter of its denoiser, and of what it is trained on."""
    digest = hashlib.sha256()
    for name, parameter in base.denoiser.named_parameters():
        first = parameter.detach().flatten()[:4]
        digest.update(f"{name} {tuple(parameter.shape)} {[] if first.is_meta else first.float().tolist()}".encode())
    pictures = getattr(dataset, "fingerprint", None) or "\n".join(dataset.names(list(range(len(dataset))), seed))
    return {"base": digest.hexdigest()[:16], "pictures": hashlib.sha256(pictures.encode()).hexdigest()[:16]}
