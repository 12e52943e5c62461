"""The doctor tells what a file is, for which base, and whether it would load; and is right about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_adapters import add_adapter, inspect_adapter, list_adapters, load_adapter, save_adapter
from diffusion_adapters.__main__ import main
from tests import dialects
from tests.dialects import CASES
from tests.pipelines import build
from tests.test_formats import fresh

DIALECT = {
    "kohya_own_names": "kohya", "kohya_ldm_names": "kohya", "kohya_sgm_names": "kohya", "kohya_bfl_names": "kohya",
    "kohya_mmdit_names": "kohya", "diffusers_now": "diffusers", "diffusers_before_peft": "diffusers",
    "ai_toolkit": "diffusers", "comfyui_unet": "comfyui", "comfyui_bfl_names": "comfyui",
    "comfyui_mmdit_names": "comfyui", "lycoris_names": "lycoris", "bfl_names_alone": "bare", "xlabs": "xlabs",
}  # fmt: skip
BASE = {"flux": "FLUX.1", "sd3": "Stable Diffusion 3", "sdxl": "Stable Diffusion XL"}
REAL = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


def written(case: str, folder: Path, **metadata: str) -> Path:
    pipeline, make = CASES[case]
    return dialects.save(make(fresh(pipeline))[0], folder / f"{case}.safetensors", metadata or None)


@pytest.mark.parametrize("case", CASES)
def test_it_knows_every_dialect_and_what_fits(case: str, tmp_path: Path) -> None:
    pipeline, _ = CASES[case]
    path = written(case, tmp_path)
    report = inspect_adapter(path)
    assert report.dialect == DIALECT[case.partition("-")[2]]
    assert report.families == {"lora": sum(report.layers.values())}
    assert (report.fits, report.coverage, report.checked_with) == (None, None, None)
    assert report.base == BASE.get(pipeline)
    pipe = fresh(pipeline)
    held = inspect_adapter(path, pipe)
    assert (held.fits, held.coverage) == (True, 1.0), held.verdict
    assert held.missing == held.unused == held.misshapen == []
    assert list_adapters(pipe) == {}
    load_adapter(pipe, path)


@pytest.mark.parametrize("width", REAL)
def test_the_width_of_the_text_tells_unets_apart(width: int, tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.zeros(4, width), f"{key}.lora_up.weight": torch.zeros(640, 4)}
    report = inspect_adapter(dialects.save(tensors, tmp_path / "a.safetensors"))
    assert report.base == REAL[width]
    assert str(width) in report.evidence
    assert list(report.ranks) == [4]


def test_a_file_that_fits_no_more_than_partly(tmp_path: Path) -> None:
    """Each fault is in its list, and the verdict is the error of loading."""
    pipe = fresh("stable_diffusion")
    tensors = dict(CASES["stable_diffusion-kohya_own_names"][1](pipe)[0])
    keys = sorted(key.removesuffix(".alpha") for key in tensors if "_ff_" in key and key.endswith("alpha"))
    del tensors[f"{keys[0]}.lora_up.weight"]
    tensors[f"{keys[1]}.lora_down.weight"] = torch.zeros(3, 5)
    for end in ("lora_up.weight", "lora_down.weight", "alpha"):
        tensors[f"lora_unet_no_such_layer.{end}"] = tensors.pop(f"{keys[2]}.{end}")
        tensors[f"lora_te3_encoder_block_0.{end}"] = tensors.pop(f"{keys[3]}.{end}")
    path = dialects.save(tensors, tmp_path / "broken.safetensors")
    report = inspect_adapter(path, pipe)
    total = sum(report.layers.values())
    assert report.coverage == pytest.approx(1 - 4 / total)
    assert "it has down, but no up" in report.missing[0]
    assert "down has shape (3, 5) instead of" in report.misshapen[0]
    assert any("no_such_layer: there is no such layer" in text for text in report.unused)
    assert any("this model has no text_encoder_3" in text for text in report.unused)
    with pytest.raises(ValueError, match=r"4 of its layers, \d+\.\d% of its numbers, cannot be applied here") as caught:
        load_adapter(pipe, path)
    assert report.verdict == f"does not load: {str(caught.value).removeprefix(f'{path}: ')}"
    assert list_adapters(pipe) == {}


def test_what_cannot_be_applied_can_be_left_out(tmp_path: Path) -> None:
    pipe = fresh("stable_diffusion")
    path = written("stable_diffusion-kohya_own_names", tmp_path)
    with pytest.raises(
        ValueError, match=r"this model has no text_encoder.*; leave_out=\['text_encoder'\] loads the rest"
    ):
        load_adapter(pipe.unet, path)
    load_adapter(pipe.unet, path, leave_out=["text_encoder", "ff"])
    from diffusion_adapters.attach import adapter_sets

    own = adapter_sets(pipe)["unet"].of("stable_diffusion-kohya_own_names")
    assert len(own) == len([p for p in dialects.layers(pipe.unet) if ".ff." not in p])


def test_another_base_is_named(tmp_path: Path) -> None:
    path = written("flux-kohya_bfl_names", tmp_path)
    with pytest.raises(ValueError, match=r"none of its layers can be applied here: .*; it seems to be for FLUX\.1, as"):
        load_adapter(fresh("stable_diffusion"), path)


def test_ours_against_a_base(tmp_path: Path) -> None:
    pipe = fresh("stable_diffusion")
    add_adapter(pipe, "one", rank=2)
    path = save_adapter(pipe, "one", tmp_path / "one.safetensors", trigger="sks cat")
    report = inspect_adapter(path, fresh("stable_diffusion"))
    assert (report.fits, report.coverage, report.trigger) == (True, 1.0, "sks cat")
    other = inspect_adapter(path, fresh("flux"))
    assert other.fits is False
    assert other.coverage == 0
    other = inspect_adapter(path, fresh("sdxl"))
    assert other.fits is False
    assert "made for another base" in other.verdict
    assert other.misshapen


def test_the_base_may_lie_on_disk(tmp_path: Path, tiny_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for case in ("sdxl-kohya_sgm_names", "flux-ai_toolkit", "sd3-kohya_mmdit_names"):
        folder = tiny_folder(case.partition("-")[0])
        path = written(case, tmp_path)
        assert inspect_adapter(path, folder).fits
        assert main(["inspect", str(path), "--base", str(folder)]) == 0
        out = capsys.readouterr().out
        assert "coverage       100.0 % of its layers" in out
        assert main(["inspect", str(path), "--json", "--base", str(folder)]) == 0
        assert json.loads(capsys.readouterr().out)["fits"] is True
    assert main(["inspect", str(path), "--base", str(tmp_path)]) == 2
    assert "no pipeline of diffusers there" in capsys.readouterr().err


def test_what_headers_tell(tmp_path: Path) -> None:
    tags = {"10_cat": {"sks cat": 12, "a photo": 7}, "reg": {"cat": 3}}
    told = {
        "ss_tag_frequency": json.dumps(tags),
        "ss_learning_rate": "0.0001",
        "ss_steps": "900",
        "ss_sd_model_name": "/home/me/models/base.safetensors",
        "ss_optimizer": "x\nINJECTED\x1b[31m",
        "modelspec.trigger_phrase": "sks\ncat",
        "modelspec.architecture": "flux-1-dev/lora",
    }
    key = "transformer.some_block.0.to_q"
    tensors = {f"{key}.lora_A.weight": torch.zeros(4, 8), f"{key}.lora_B.weight": torch.zeros(8, 4)}
    report = inspect_adapter(dialects.save(tensors, tmp_path / "a.safetensors", told))
    assert report.trigger == "sks cat"
    assert list(report.tags.items())[:2] == [("sks cat", 12), ("a photo", 7)]
    assert report.training == {"steps": "900", "learning_rate": "0.0001", "optimizer": "x INJECTED [31m"}
    assert report.base == "FLUX.1"
    assert "\x1b" not in str(report)
    assert len(str(report).splitlines()) == len(list(report.rows()))
    for broken in ("{", "[1]", '{"a": 1}', '{"a": {"b": "x"}}', "[" * 5000):
        assert not inspect_adapter(
            dialects.save(tensors, tmp_path / "b.safetensors", {"ss_tag_frequency": broken})
        ).tags


def test_without_a_base_the_header_alone_is_read(tmp_path: Path) -> None:
    """A file whose numbers are gone but for zeros at the same size is told in the same words."""
    path = written("flux-ai_toolkit", tmp_path)
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)  # no numbers: read, they would be refused
    path.write_bytes(data)
    assert inspect_adapter(path).dialect == "diffusers"
    with pytest.raises(ValueError, match="is not finite"):
        inspect_adapter(path, build("flux"))
