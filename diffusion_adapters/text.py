"""The part of an adapter that sits in a pipeline's text encoders: PEFT LoRA, under the adapter's name.

Text encoders are models of transformers, whose attention has no processors: there PEFT's layers do what ours do in a
denoiser. A foreign LoRA on the same text encoder is left as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .tokens import find_text_encoders
from .weight import AdapterWeight, as_weight

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""What diffusers' examples adapt in a CLIP text encoder."""


@dataclasses.dataclass(frozen=True)
class TextPart:
    """The LoRA of one text encoder: PEFT's settings, and tensors by the keys of its state."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The settings, for a file's header."""
        return {"peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "target_modules": self.target_modules}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TextPart:
        """From a file. Raises ValueError, KeyError or TypeError for what is no such thing."""
        if settings["peft_type"] != "LORA":
            raise ValueError(f"text encoders are adapted by LoRA, not by {settings['peft_type']!r}")
        targets = tuple(str(name) for name in settings["target_modules"])
        return cls(int(settings["r"]), float(settings["lora_alpha"]), targets, tensors)


def add_text_adapter(model: Any, name: str, rank: int = 4, alpha: float | None = None) -> list[nn.Parameter]:
    """Put a new trainable LoRA on each CLIP text encoder, as part of the adapter `name`; its parameters.

    Raises ValueError if the pipeline has no such text encoder.
    """
    encoders = find_text_encoders(model)
    if not encoders:
        raise ValueError(f"{type(model).__name__} has no CLIP text encoder that could be trained")
    for encoder in encoders.values():
        _inject(encoder, name, TextPart(rank, float(alpha or rank), PROJECTIONS), fresh=True)
    return [value for encoder in encoders.values() for value in _parameters(encoder, name)]


def text_parts(model: Any, name: str) -> dict[str, TextPart]:
    """What adapter `name` has in the text encoders, by component name."""
    found = {}
    for component, encoder in find_text_encoders(model).items():
        config = getattr(encoder, "peft_config", {}).get(_key(name))
        if config is not None:
            targets = tuple(sorted(config.target_modules))
            found[component] = TextPart(config.r, float(config.lora_alpha), targets, _state(encoder, name))
    return found


def load_text(model: Any, name: str, parts: Mapping[str, TextPart], trainable: bool) -> None:
    """Attach what a file has for text encoders. All or nothing; raises ValueError that names what does not fit."""
    encoders = find_text_encoders(model)
    absent = [component for component in parts if component not in encoders]
    if absent:
        raise ValueError(
            f"it also changes {absent[0]}; load it onto a pipeline that has one, not onto a denoiser alone"
        )
    try:
        for component, part in parts.items():
            _inject(encoders[component], name, part, fresh=False)
        fill_text(model, name, parts)
        for component in parts:
            for value in _parameters(encoders[component], name):
                value.requires_grad_(trainable)
    except Exception:
        delete_text(model, name)
        raise


def fill_text(model: Any, name: str, parts: Mapping[str, TextPart]) -> None:
    """Give what adapter `name` has in the text encoders the numbers of `parts`. ValueError if they do not fit."""
    encoders = find_text_encoders(model)
    for component, part in parts.items():
        own = _state(encoders[component], name)
        wrong = [key for key in {*own, *part.tensors} if key not in own or key not in part.tensors]
        wrong += [key for key in own if key in part.tensors and own[key].shape != part.tensors[key].shape]
        if wrong:
            raise ValueError(f"{component}.{min(wrong)} is missing, unexpected or of another shape")
        for key, value in own.items():
            value.copy_(part.tensors[key])


def set_text(model: Any, weights: Mapping[str, float | AdapterWeight]) -> None:
    """Make exactly the adapters of `weights` act in the text encoders, each times the constant part of its weight."""
    constants = {name: as_weight(weight, name) for name, weight in weights.items()}
    for component, encoder in find_text_encoders(model).items():
        if not hasattr(encoder, "peft_config"):
            continue
        layers = _layers(encoder)
        ours = {_key(name): weight.whole(component) for name, weight in constants.items() if weight.whole(component)}
        trained = [(value, value.requires_grad) for layer in layers for value in layer.parameters()]
        for layer in layers:
            foreign = [other for other in layer.active_adapters if not other.startswith(":")]
            layer.set_adapter([*foreign, *(key for key in ours if key in layer.scaling)])
            for key in ours.keys() & layer.scaling.keys():
                layer.set_scale(key, ours[key])
        for value, requires_grad in trained:  # which set_adapter changes
            value.requires_grad_(requires_grad)


def delete_text(model: Any, name: str) -> None:
    """Take adapter `name` from the text encoders; without any LoRA they are as they were."""
    for encoder in find_text_encoders(model).values():
        if _key(name) not in getattr(encoder, "peft_config", {}):
            continue
        trained = [(value, value.requires_grad) for value in encoder.parameters()]
        for layer in _layers(encoder):
            layer.set_adapter([other for other in layer.active_adapters if other != _key(name)])
            layer.delete_adapter(_key(name))
        for value, requires_grad in trained:
            value.requires_grad_(requires_grad)
        del encoder.peft_config[_key(name)]
        if not encoder.peft_config:
            _remove_peft(encoder)


def merged_copy(component: str, encoder: nn.Module) -> nn.Module:
    """A copy of a text encoder with the LoRAs that act in its weights, and no others. ValueError if not finite."""
    made: Any = copy.deepcopy(encoder)
    try:
        for layer in _layers(made):
            layer.merge(safe_merge=True)
    except ValueError as error:
        raise ValueError(f"{component}: {error}; nothing was saved") from error
    _remove_peft(made)
    return made


def _key(name: str) -> str:
    return f":{name}"  # PEFT refuses names that are part of its own words


def _inject(encoder: nn.Module, name: str, part: TextPart, fresh: bool) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"a LoRA on text encoders needs the package peft ({error}): pip install peft") from None
    trained = [(value, value.requires_grad) for value in encoder.parameters()]
    active = {id(layer): layer.active_adapters for layer in _layers(encoder)}
    settings: dict[str, Any] = {"lora_alpha": part.alpha, "target_modules": list(part.target_modules)}
    config = LoraConfig(r=part.rank, init_lora_weights=fresh, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(config, encoder, adapter_name=_key(name))
    for layer in _layers(encoder):
        if _key(name) in layer.scaling:
            layer.set_adapter([*active.get(id(layer), []), _key(name)])
    for value, requires_grad in trained:
        value.requires_grad_(requires_grad)
    for value in _parameters(encoder, name):
        value.data = value.data.float()


def _remove_peft(encoder: Any) -> None:
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(encoder)
    del encoder.peft_config


def _layers(encoder: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in encoder.modules() if isinstance(module, LoraLayer)]


def _parameters(encoder: nn.Module, name: str) -> list[nn.Parameter]:
    return [value for place, value in encoder.named_parameters() if f".{_key(name)}." in place]


def _state(encoder: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of adapter `name`, themselves, by PEFT's keys: PATH.lora_A.weight."""
    named = encoder.named_parameters()
    return {place.replace(f".{_key(name)}", ""): value.detach() for place, value in named if f".{_key(name)}." in place}
