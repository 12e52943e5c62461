"""Files for other programs: stock diffusers, PEFT and the arithmetic of kohya's scripts find the same ΔW in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from diffusion_adapters import add_adapter, export_lora
from diffusion_adapters.safe import read_safetensors
from tests.exported import adapted, assert_same, denoiser, stock, wanted
from tests.hosts import stir
from tests.pipelines import build

BASES = ("stable_diffusion", "sdxl", "sd3", "flux")
FAMILIES_HERE = ("lora", "wara", "transformed_lora")
"""Low rank, low rank by a transform, and not low rank."""


@pytest.mark.parametrize("family", FAMILIES_HERE)
@pytest.mark.parametrize("name", BASES)
def test_stock_diffusers_reads_denoiser_and_text_encoders(tmp_path: Path, name: str, family: str) -> None:
    pipe = adapted(name, family)
    report = export_lora(pipe, "one", tmp_path / "lora.safetensors", rank=64)
    assert_same(stock(name, report.path), wanted(pipe), max(1e-6, 2 * report.worst_error))
    assert report.worst_error < 1e-5
    assert report.exact == (family != "transformed_lora")


@pytest.mark.parametrize("family", FAMILIES_HERE)
@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
def test_stock_diffusers_reads_kohya_keys_of_unets(tmp_path: Path, name: str, family: str) -> None:
    pipe = adapted(name, family)
    export_lora(pipe, "one", tmp_path / "lora.safetensors", rank=64, dialect="kohya")
    keys = read_safetensors(tmp_path / "lora.safetensors")[0]
    prefixes = {"lora_unet", "lora_te1", "lora_te2"} if name == "sdxl" else {"lora_unet", "lora_te"}
    assert {"_".join(key.split("_")[:2]) for key in keys} == prefixes
    assert any("input_blocks" in key for key in keys) == (name == "sdxl")
    assert_same(stock(name, tmp_path / "lora.safetensors"), wanted(pipe))


def test_stock_diffusers_reads_kohya_keys_of_flux(tmp_path: Path) -> None:
    """Its reader knows the published width alone: two blocks of that size, without numbers of their own."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    adapter_set = add_adapter(model, "one", rank=1)
    stir(adapter_set.parameters())
    export_lora(model, "one", tmp_path / "lora.safetensors", dialect="kohya")
    read = FluxPipeline.lora_state_dict(str(tmp_path / "lora.safetensors"))
    if isinstance(read, tuple):
        read = read[0]
    x = torch.randn(3072, generator=torch.Generator().manual_seed(1))
    assert len(adapter_set.of("one")) == 11
    for path, adapter in adapter_set.of("one").items():
        up, down = (read[f"transformer.{path}.lora_{side}.weight"].float() for side in "BA")
        own = adapter.low_rank()
        assert own is not None
        torch.testing.assert_close(up @ (down @ x), (own[0] @ (own[1] @ x)).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dialect", ["diffusers", "kohya", "comfyui"])
@pytest.mark.parametrize("name", BASES)
def test_text_encoders_are_named_as_each_program_does(tmp_path: Path, name: str, dialect: str) -> None:
    pipe = adapted(name)
    export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect=dialect)
    tensors, _ = read_safetensors(tmp_path / "lora.safetensors")
    prefixes = {
        "diffusers": ("text_encoder.", "text_encoder_2."),
        "kohya": ("lora_te_",) if name == "stable_diffusion" else ("lora_te1_", "lora_te2_"),
        "comfyui": ("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."),
    }[dialect]
    encoders = {"stable_diffusion": 1, "flux": 1}.get(name, 2)
    deltas = {key: delta for key, delta in wanted(pipe).items() if key.startswith("text_encoder")}
    for i, prefix in enumerate(prefixes[:encoders]):
        component = "text_encoder_2" if i else "text_encoder"
        path = "text_model.encoder.layers.0.self_attn.q_proj"
        if dialect == "diffusers":
            down, up = (tensors[f"{prefix}{path}.lora_{side}.weight"] for side in "AB")
        else:
            layer = f"{prefix}{path.replace('.', '_') if dialect == 'kohya' else path}"
            down, up = (tensors[f"{layer}.lora_{side}.weight"] for side in ("down", "up"))
            up = up * float(tensors[f"{layer}.alpha"]) / down.shape[0]
        torch.testing.assert_close(up @ down, deltas[f"{component}.encoder.layers.0.self_attn.q_proj"])


def test_peft_reads_it(tmp_path: Path) -> None:
    """PEFT's own LoRA on the bare denoiser, given the file's tensors, has the same ΔW."""
    pipe = adapted("sd3", text=False)
    report = export_lora(pipe, "one", tmp_path / "lora.safetensors")
    tensors, _ = read_safetensors(report.path)
    state = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    model = denoiser(build("sd3"))
    targets = sorted({key.partition(".lora_")[0] for key in state})
    inject_adapter_in_model(LoraConfig(r=report.rank, lora_alpha=report.rank, target_modules=targets), model)
    result = set_peft_model_state_dict(model, state)
    assert not result.unexpected_keys
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    got = {f"transformer.{path}": layer.get_delta_weight("default").detach() for path, layer in layers.items()}
    assert_same(got, wanted(pipe))


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
def test_a_base_without_names_in_a_dialect_is_refused(tmp_path: Path, dialect: str) -> None:
    pipe = adapted("sana", text=False)
    with pytest.raises(ValueError, match=rf"{dialect}.*transformer, a SanaTransformer2DModel.*'diffusers'"):
        export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect=dialect)
    with pytest.raises(ValueError, match=r"unknown dialect 'khoya'; one of diffusers, kohya, comfyui"):
        export_lora(pipe, "one", tmp_path / "lora.safetensors", dialect="khoya")
    assert not list(tmp_path.iterdir())
