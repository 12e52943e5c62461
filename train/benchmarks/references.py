"""What adapters are compared with: PEFT's LoRA and full fine-tuning, in the place of an AdapterSet in the same loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from diffusion_adapters import Adapter, AdapterSet


class _Values(Adapter):
    """Parameters that live elsewhere, shown to the loop as those of an adapter."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        nn.Module.__init__(self)
        self.values = nn.ParameterList(parameters)


class Reference(AdapterSet):
    """Trains parameters of the denoiser itself; `undo` makes it what it was."""

    def __init__(self, denoiser: Any, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(denoiser)
        self.own = _Values(parameters)

    def everyone(self) -> list[Adapter]:
        return [self.own]

    def undo(self) -> None:
        """Take everything away again."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write what would be given to others."""
        raise NotImplementedError


class PeftLora(Reference):
    """PEFT's LoRA on the attention projections."""

    def __init__(self, denoiser: Any, options: Mapping[str, Any]) -> None:
        from peft import LoraConfig

        targets = list(AdapterSet(denoiser).projections())
        config = LoraConfig(r=options["rank"], lora_alpha=options["alpha"], target_modules=targets)
        denoiser.add_adapter(config, adapter_name="reference")
        super().__init__(denoiser, [p for p in denoiser.parameters() if p.requires_grad])

    def undo(self) -> None:
        self.denoiser.unload_lora()  # type: ignore[operator]
        self.denoiser.requires_grad_(False)

    def save(self, path: Path) -> None:
        from peft import get_peft_model_state_dict

        save_file(get_peft_model_state_dict(self.denoiser, adapter_name="reference"), path)


class FullFineTuning(Reference):
    """Every parameter of the denoiser."""

    def __init__(self, denoiser: Any, options: Mapping[str, Any]) -> None:
        self.__dict__["before"] = {name: value.clone() for name, value in denoiser.state_dict().items()}
        super().__init__(denoiser, denoiser.requires_grad_(True).parameters())

    def undo(self) -> None:
        self.denoiser.load_state_dict(self.before)
        self.denoiser.requires_grad_(False)

    def save(self, path: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.denoiser.state_dict().items()}, path)


REFERENCES: Mapping[str, type[PeftLora] | type[FullFineTuning]] = {"peft": PeftLora, "full": FullFineTuning}
