"""What a run will ask of the memory, before anything is loaded: a step of the real modules without their numbers.

The denoiser, its adapters, the text encoders and the VAE are made on the meta device and seen by torch as tensors of
the training device that hold nothing; caching one picture and one step forward and backward then run as they will, and
every storage that comes and goes is counted.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.bases import Base, BaseInfo, BaseOptions

Objective = Callable[[Base, nn.Module, Any, Mapping[str, Tensor]], tuple[Tensor, Any]]
STATE = {"prodigy": 16, "adamw_8bit": 2, "adafactor": 4}
"""Bytes of optimizer state per trained number, where they are not the 8 of AdamW."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on one device. `encoding` and `step` are the highest points of what comes and goes, gradients included."""

    base: int
    adapter: int
    optimizer: int
    encoding: int
    step: int
    kept: int
    """Of `step`, what the forward keeps for the backward."""

    @property
    def total(self) -> int:
        """At the highest point of the run."""
        return self.base + max(self.encoding, self.adapter + self.optimizer + self.step)

    def __str__(self) -> str:
        parts = {"base": self.base, "adapter": self.adapter, "optimizer": self.optimizer, "step": self.step}
        return f"{show(self.total)} ({', '.join(f'{name} {show(size)}' for name, size in parts.items())})"


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed: `current` and `peak` bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):  # what is handed in was there before
            if isinstance(value, Tensor):
                self._known.setdefault(value.untyped_storage())
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and value.untyped_storage() not in self._known:
                storage = value.untyped_storage()
                self._known[storage] = None
                self.current += storage.nbytes()
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return made

    def _freed(self, size: int) -> None:
        self.current -= size


def estimate(
    info: BaseInfo,
    config: Any,
    attach: Callable[[nn.Module], Any],
    objective: Objective,
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int],
) -> Estimate:
    """The bytes of a run on `device` whose base has `dtype` and whose largest pictures have `size`, (width, height).

    `attach` puts the adapter that is trained into a denoiser. Raises ValueError if a component cannot be made without
    its numbers, and what torch raises if a step depends on numbers.
    """
    hollow = FakeTensorMode(allow_non_fake_inputs=True)
    parts = components(info, config)
    adapters = attach(parts[info.kind.component])
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    for part in modules.values():
        hide(part, hollow, device, dtype)
    hide(adapters, hollow, device, torch.float32)
    adapters.set_weights(adapters.weights)  # plans look at the parameters anew
    base = info.kind(_pipeline(info, parts), config)
    weights = sum(_bytes(part) for part in modules.values()) - _saved(parts[info.kind.component], config.quantization)
    if config.gradient_checkpointing:
        base.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    with LiveBytes() as encoding, torch.no_grad():
        with hollow:
            pixels = torch.empty(1, 3, size[1], size[0])
        told = {"moments": base.encode_image(pixels), **base.encode_prompt([config.instance_prompt])}
    adapters.train()
    batch = _batch(told, config, size)
    with LiveBytes() as step:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, _ = objective(base, base.denoiser, adapters, batch)
        kept = step.current
        loss.backward()
    trained = sum(parameter.numel() for parameter in adapters.parameters() if parameter.requires_grad)
    state = STATE.get("adamw_8bit" if config.use_8bit_adam else config.optimizer.lower(), 8) + 4 * config.use_ema
    own = {"adapter": _bytes(adapters), "optimizer": state * trained}
    rows = sum(value.numel() * value.element_size() for value in batch.values())
    return Estimate(base=weights, encoding=encoding.peak, step=rows + step.peak, kept=kept, **own)


def _batch(told: Mapping[str, Tensor], config: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    """Rows of a step: for prior preservation as many again."""
    own = config.train_batch_size
    count = 2 * own if config.with_prior_preservation else own
    batch = {name: value.expand(count, *value.shape[1:]).clone() for name, value in told.items()}
    batch |= {"spread": torch.full((count,), 0.5), "seeds": torch.zeros(count, dtype=torch.long)}
    batch["sizes"] = torch.tensor([size[1], size[0], 0, 0, size[1], size[0]]).expand(count, 6)
    if config.with_prior_preservation:
        batch["prior"] = torch.arange(count) >= own
    if config.masked_loss:
        batch["mask"] = torch.ones(count, 1, *told["moments"].shape[-2:])
    return batch


def components(info: BaseInfo, options: BaseOptions) -> dict[str, Any]:
    """The pipeline's modules on the meta device, its tokenizers and schedulers as they are. Raises ValueError."""
    import diffusers
    import transformers

    index = diffusers.DiffusionPipeline.load_config(info.source, revision=options.revision)
    found: dict[str, Any] = dict.fromkeys(info.absent)
    for name, entry in index.items():
        if not isinstance(entry, (list, tuple)) or name in info.kind.load_arguments or name in found:
            continue
        library, title = entry
        kind = getattr({"diffusers": diffusers, "transformers": transformers}.get(str(library)), str(title), None)
        where: dict[str, Any] = {"subfolder": name, "revision": options.revision}
        if kind is None:
            raise ValueError(f"its {name} is a {title} of {library}")
        elif not issubclass(kind, nn.Module):
            found[name] = kind.from_pretrained(info.source, **where)
        elif library == "diffusers":
            with torch.device("meta"):
                found[name] = kind.from_config(kind.load_config(info.source, **where))
        else:
            with torch.device("meta"):
                found[name] = kind(kind.config_class.from_pretrained(info.source, **where))
    return found


def hide(module: nn.Module, hollow: FakeTensorMode, device: torch.device, dtype: torch.dtype) -> None:
    """Make the tensors of a module on the meta device look like tensors of `device`, floating ones of `dtype`."""

    def hidden(value: Tensor) -> Any:
        empty = value.detach().to("meta", dtype if value.is_floating_point() else value.dtype)
        return FakeTensor(hollow, empty, device).requires_grad_(value.requires_grad)

    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            kept.update({name: hidden(value) for name, value in kept.items() if value is not None})

    def to(*args: Any, **kwargs: Any) -> nn.Module:  # of torch swaps parameters, which these refuse
        wanted = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
        if wanted and wanted[0] != next(module.parameters()).dtype:
            hide(module, hollow, device, wanted[0])
        return module

    module.__dict__["to"] = to


def _pipeline(info: BaseInfo, parts: Mapping[str, Any]) -> Any:
    import diffusers

    index = diffusers.DiffusionPipeline.load_config(info.source)
    kind = getattr(diffusers, index["_class_name"])
    given = {name: value for name, value in index.items() if not isinstance(value, (list, tuple))}
    given |= {**parts, **info.kind.load_arguments}
    known = inspect.signature(kind.__init__).parameters
    return kind(**{name: value for name, value in given.items() if name in known})


def _bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))


def _saved(denoiser: nn.Module, quantization: str | None) -> int:
    """Bytes that the weights of linear layers give up for 8 or 4 bit."""
    if quantization is None:
        return 0
    kept = 0.5 if quantization.endswith("4") else 1
    weights = [module.weight for module in denoiser.modules() if isinstance(module, nn.Linear)]
    return int(sum(weight.numel() * (weight.element_size() - kept) for weight in weights))


def show(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
