"""Encoders of the ruler: pictures, and texts where the model reads them, as unit vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffusion_adapters.registry import nearest
from diffusion_adapters.safe import from_safetensors

AT_ONCE = 32


class Encoder:
    """A vision or CLIP-like model of transformers, frozen, in fp32.

    What stands for a picture is the projected embedding of a model that has one (CLIP-I of the DreamBooth protocol),
    else the class token (DINO of that protocol), else the pooled output.
    """

    def __init__(self, path: str, device: torch.device | str = "cpu") -> None:
        """`path`: a folder or Hub id. Raises FileNotFoundError, or ValueError for a model without image features."""
        self.path = path
        self.device = torch.device(device)
        self.model, self.prepare = load_model(path)
        self.model.requires_grad_(False).eval().to(self.device)
        self.tokenizer = _tokenizer(path) if hasattr(self.model, "get_text_features") else None

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any of its numbers."""
        digest = hashlib.sha256()
        for value in self.model.state_dict().values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def reads_text(self) -> bool:
        """Whether `texts` works."""
        return self.tokenizer is not None

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """n RGB pictures -> (n, d) on the CPU, each row of length 1."""
        rows = []
        for start in range(0, len(pictures), AT_ONCE):
            part = [picture.convert("RGB") for picture in pictures[start : start + AT_ONCE]]
            pixels = self.prepare(images=part, return_tensors="pt")["pixel_values"].to(self.device)
            rows.append(F.normalize(vision_features(self.model, pixels).float().flatten(1), dim=1).cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """n prompts -> (n, d) on the CPU, each row of length 1. Raises ValueError if the model reads no text."""
        if self.tokenizer is None:
            raise ValueError(f"{self.path} is a {type(self.model).__name__}, which reads no text; give a CLIP model")
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        tokens = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask") if name in tokens}
        return F.normalize(_embedding(self.model.get_text_features(**tokens)).float(), dim=1).cpu()


def _embedding(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def vision_features(model: Any, pixels: Tensor) -> Tensor:
    """(b, 3, h, w) as the model wants them -> (b, d): projected, the class token, or pooled."""
    if hasattr(model, "get_image_features"):
        return _embedding(model.get_image_features(pixel_values=pixels))
    output = model(pixel_values=pixels)
    tokens = output.last_hidden_state
    if tokens.ndim == 3 and any(name.endswith("cls_token") for name, _ in model.named_parameters()):
        return tokens[:, 0]
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled
    return tokens.flatten(2).mean(2) if tokens.ndim == 4 else tokens.mean(1)


def load_model(path: str) -> tuple[Any, Any]:
    """A transformers model with image features and its processor. Raises FileNotFoundError or ValueError.

    Its numbers are read from safetensors alone.
    """
    from transformers import AutoModel

    processor = read_processor(path)
    try:
        return from_safetensors(AutoModel, path, dtype=torch.float32), processor
    except (OSError, ValueError) as error:
        raise _unloadable(path, error) from None


def read_processor(path: str) -> Any:
    """What prepares pictures for a model with image features, none of whose numbers is read. Raises as `load_model`."""
    from transformers import AutoConfig, AutoImageProcessor

    if Path(path).is_file():
        raise ValueError(f"encoder {path} is a file; give the folder of a transformers model, with its config.json")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"encoder {path}: {_missing(path, error)}") from None
    sees = hasattr(config, "vision_config") or getattr(_architecture(config), "main_input_name", "") == "pixel_values"
    if not sees:
        raise ValueError(
            f"encoder {path} is a {config.model_type} model, which has no image features; give a vision or CLIP model, "
            "such as facebook/dinov2-base or openai/clip-vit-base-patch32"
        )
    try:
        return AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _unloadable(path, error) from None


def _unloadable(path: str, error: Exception) -> ValueError:
    return ValueError(f"encoder {path} cannot be loaded: {' '.join(str(error).split())}")


def _architecture(config: Any) -> Any:
    from transformers import AutoModel

    return AutoModel._model_mapping.get(type(config), None)


def _missing(path: str, error: Exception) -> str:
    parent = Path(path).parent
    if Path(path).is_dir():
        return "the folder has no config.json of a transformers model"
    if parent.is_dir() and (str(parent) != "." or "/" in path):
        folders = sorted(p.name for p in parent.iterdir() if (p / "config.json").is_file())
        return f"no such folder; {nearest(Path(path).name, folders)}"
    return f"neither a folder nor on the Hub ({str(error).strip().splitlines()[0]})"


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder {path}: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from None
