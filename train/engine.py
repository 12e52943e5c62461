"""The only training loop: it yields a record per optimizer step, so that a script, a test or a UI can drive it."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from diffusion_adapters import AdapterSet, get_active_adapters, set_adapters
from train import messages, state
from train.average import Average
from train.bases import Base
from train.objective import Objective
from train.processes import average_gradients, spread
from train.settings import TrainOptions, make_optimizer, optimizer_groups
from train.text import TextTraining

Record = dict[str, float]


class Dataset(Protocol):
    """What the loop needs of its data: the samples of a run by number."""

    def __len__(self) -> int: ...

    def batch(self, numbers: list[int], seed: int) -> dict[str, Tensor]: ...

    def names(self, numbers: list[int], seed: int) -> list[str]: ...

    def texts(self, numbers: list[int], seed: int) -> list[str]: ...


class Trainer:
    """A run between two steps: what is trained, how, and how far it is. The same seed makes the same run, bitwise.

    Everything that a step draws comes from the seed and the number of the step, so what others draw between two steps
    (validation pictures, a resumed start) changes nothing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: TrainOptions,
        base: Base,
        adapters: AdapterSet,
        dataset: Dataset,
        *,
        objective: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        """`groups`: what the optimizer trains at which rates, unless adapters say it by themselves."""
        self.accelerator, self.options, self.base = accelerator, options, base
        self.adapters, self.dataset, self.objective = adapters, dataset, objective or Objective()
        assert options.learning_rate is not None  # see `settle`
        self.rate = rate = options.learning_rate
        self.history: list[Record] = []
        for parameter in adapters.parameters():
            parameter.data = parameter.data.float()
        self.text = TextTraining(base, options, options.max_train_steps)
        text = self.text.parameters
        self.parameters = [p for p in adapters.parameters() if p.requires_grad] + text
        if options.gradient_checkpointing:
            base.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        groups = optimizer_groups(adapters.everyone(), rate) if groups is None else groups
        groups += [{"params": text, "lr": options.text_encoder_lr or rate}] if text else []
        optimizer, self.schedule = make_optimizer(options, groups, rate, options.max_train_steps)
        self.average = Average(self.parameters, optimizer, options.ema_decay if options.use_ema else None)
        spread(accelerator, base.denoiser, [*adapters.state_dict().values(), *text])
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        adapters.train()

    @property
    def step(self) -> int:
        """Steps that are done."""
        return len(self.history)

    def train(
        self, stop: Callable[[], bool] = lambda: False, keep: Callable[[bool], object] = lambda stopping: None
    ) -> Iterator[Record]:
        """Go on to the last step; yield {"step", "loss", "lr", "grad_norm"} and the parts of the loss after each.

        After each step `keep` may save the run, and `stop` is asked; if it says so, `keep(True)` and the end. Raises
        RuntimeError, before the step is taken, if the loss is not finite.
        """
        messages.announce(self)
        while self.step < self.options.max_train_steps:
            record = self._one_step()
            self.history.append(record)
            if self.step == 1:
                messages.check_coverage(self.adapters)
            yield dict(record)
            kept = keep(False)
            asked = torch.tensor(float(stop()), device=self.accelerator.device)
            if self.accelerator.reduce(asked, "sum") > 0:  # all stop, or none
                if not kept:
                    keep(True)
                return

    def _one_step(self) -> Record:
        accelerator, options, step = self.accelerator, self.options, self.step + 1
        size, parts = options.train_batch_size, options.gradient_accumulation_steps
        totals = defaultdict[str, float](float)
        self.text.begin(step)
        torch.manual_seed(messages.step_seed(options.seed, step, accelerator.process_index))
        for part in range(parts):
            first = (((step - 1) * parts + part) * accelerator.num_processes + accelerator.process_index) * size
            numbers = list(range(first, first + size))
            batch = _on(self.dataset.batch(numbers, options.seed), accelerator.device)
            with accelerator.autocast():
                if self.text.parameters:
                    batch |= self.base.encode_prompt(self.dataset.texts(numbers, options.seed))
                value, named = self.objective(self.base, self.base.denoiser, self.adapters, batch)
            named = {"loss": value.detach(), **(named if len(named) > 1 else {})}
            means = accelerator.reduce(torch.stack(list(named.values())), "mean").tolist()
            if not math.isfinite(means[0]):
                names = self.dataset.names(numbers, options.seed)
                raise RuntimeError(messages.not_finite(step, means[0], self._lr(), names))
            for name, mean in zip(named, means, strict=True):
                totals[name] += mean / parts
            accelerator.backward(value / parts)
        average_gradients(accelerator, [value for value in self.parameters if value.requires_grad])
        current = self._lr()
        norm = float(accelerator.clip_grad_norm_(self.parameters, options.max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            self.schedule.step()
            self.text.end()
            self.average.step()
        return {"step": step, **totals, "lr": current, "grad_norm": norm}

    def _lr(self) -> float:
        """The learning rate of the first values that the objective trains now."""
        groups = self.optimizer.param_groups
        return next(group["lr"] for group in groups if any(value.requires_grad for value in group["params"]))

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Inside, the live modules are what the run would save now; after it training goes on as if nothing had been.

        For sampling and for saving: averaged values where there is an average, evaluation mode, no gradients, any
        adapter weights.
        """
        weights = get_active_adapters(self.base.pipeline)
        self.adapters.eval()
        try:
            with torch.no_grad(), self.average.shown():
                self.adapters.refresh()  # optimizers may write past torch's count of changes
                yield
        finally:
            self.adapters.train()
            set_adapters(self.base.pipeline, list(weights), weights)

    def state(self) -> dict[str, Any]:
        """All that `load` needs besides the adapter's file, for `train.state.write`."""
        scaler = self.accelerator.scaler
        return {
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "updates": self.schedule.last_epoch,
            "average": self.average.state(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load(self, folder: Path) -> None:
        """Go on from the state in `folder`; the adapter must be the one of its file."""
        saved = state.read(folder)
        self.history[:] = saved["history"]
        state.restore_optimizer(getattr(self.optimizer, "optimizer", self.optimizer), saved["optimizer"])
        self.average.load(saved["average"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.schedule.last_epoch = saved["updates"]
        rates = [rate(saved["updates"]) for rate in self.schedule.lr_lambdas]
        rates = [base * rate for base, rate in zip(self.schedule.base_lrs, rates, strict=True)]
        self.schedule.load_state_dict(self.schedule.state_dict() | {"_last_lr": rates})
        for group, rate in zip(self.schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # of the number of steps that this run is to have


def _on(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value if name == "seeds" else value.to(device) for name, value in batch.items()}
