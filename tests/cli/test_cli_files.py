"""The command line on adapter adapters: what each command prints and writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from diffusion_adapters import FAMILIES, MERGERS, load_adapter
from tests.command_line import Run, assert_fails, pixels, trained
from tests.hosts import pipeline, sample, small


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_tells_what_a_file_is(cli: Run, adapters: dict[str, Path], family: str) -> None:
    code, out, err = cli("inspect", adapters[family])
    assert code == 0, err
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert family in rows["family"]
    assert str(adapters[family]) in rows["file"]
    assert "KiB" in rows["file"]
    for option, value in FAMILIES[family].Config(**small(family)).as_dict().items():
        if isinstance(value, dict):  # of domains, each on a row of its own
            assert all(f"{name}: family={part['family']}" in out for name, part in value.items())
        else:
            assert f"{option}={value}" in rows["options"]
    assert "all attention projections" in rows["targets"]
    assert "a sks cat" in rows["trigger"]
    assert "steps=7" in rows["training"]
    assert "diffusion-adapters" in rows["format"]
    assert "UNet2DConditionModel" in rows["base"]
    assert "32 layers" in rows["unet"]


def test_families_lists_every_option_and_alias(cli: Run) -> None:
    code, out, _ = cli("families")
    assert code == 0
    for family in FAMILIES:
        assert any(line.startswith(family) for line in out.splitlines())
        for alias in FAMILIES.aliases(family):
            assert f"alias {alias}" in out
        for field in dataclasses.fields(FAMILIES[family].Config):
            said = f"(default: {field.default})"
            assert any(line.split()[0] == field.name and said in line for line in out.splitlines())


@pytest.mark.parametrize("family", FAMILIES)
def test_export_writes_what_stock_diffusers_reads(cli: Run, adapters: dict[str, Path], family: str) -> None:
    code, out, err = cli("export", adapters[family], "--output", "lora.safetensors", "--rank", 16)
    assert code == 0, err
    assert out.startswith("lora.safetensors: rank ")
    assert "exact" in out or "relative error" in out
    ours, stock = pipeline(), pipeline()
    load_adapter(ours, adapters[family])
    stock.load_lora_weights("lora.safetensors")
    assert (sample(ours) - sample(stock)).abs().max() < 1e-4


def test_export_lies_beside_the_adapter_unless_told(cli: Run, tmp_path: Path) -> None:
    file = trained(tmp_path / "sub" / "one.safetensors")
    code, out, _ = cli("export", file)
    assert code == 0
    assert (tmp_path / "sub" / "pytorch_lora_weights.safetensors").exists()
    assert out.strip().endswith("exact")


def test_export_of_a_blend_in_half_precision_for_kohya(cli: Run, adapters: dict[str, Path]) -> None:
    flags = ("--dtype", "fp16", "--dialect", "kohya", "--output", "blend.safetensors")
    code, out, err = cli("export", f"{adapters['lora']}:0.5", f"{adapters['other']}:-1", *flags)
    assert code == 0, err
    assert "exact but for the rounding to fp16, relative error " in out
    assert 1e-5 < float(out.split()[-1]) < 1e-3
    ours, stock = pipeline(), pipeline()
    for name, weight in (("lora", 0.5), ("other", -1.0)):
        load_adapter(ours, adapters[name], adapter_weight=weight)
    stock.load_lora_weights("blend.safetensors")
    assert (sample(ours) - sample(stock)).abs().max() < 1e-3


def test_merge_writes_an_adapter_like_any_other(cli: Run, adapters: dict[str, Path]) -> None:
    code, out, err = cli("merge", f"{adapters['lora']}:0.5", f"{adapters['other']}:-1", "--output", "sum.safetensors")
    assert code == 0, err
    assert out.startswith("sum.safetensors: rank ")
    assert out.strip().endswith("exact")
    ours, sum_ = pipeline(), pipeline()
    for name, weight in (("lora", 0.5), ("other", -1.0)):
        load_adapter(ours, adapters[name], adapter_weight=weight)
    load_adapter(sum_, "sum.safetensors")
    assert (sample(ours) - sample(sum_)).abs().max() < 1e-4
    words = ("merge", adapters["wara"], adapters["loldu"], "--method", "ties", "--density", 0.3, "--rank", 2)
    code, out, err = cli(*words)
    assert code == 0, err
    assert out.startswith("merged.safetensors: rank 2, relative error 0.")
    assert cli("inspect", "merged.safetensors")[0] == 0


def test_merge_knows_its_methods_and_their_options(cli: Run, adapters: dict[str, Path]) -> None:
    code, out, _ = cli("merge", "--help")
    assert code == 0
    for method in MERGERS:
        assert any(line.split()[:1] == [method] for line in out.splitlines())
        for option in MERGERS[method].Config().as_dict():
            assert f"--{option}" in out
    assert_fails(cli("merge", adapters["lora"], "--method", "linear", "--density", 0.5), "unknown option 'density'")
    assert_fails(cli("merge", adapters["lora"], "--method", "tis"), "--method", "tis")
    assert_fails(cli("merge", adapters["lora"], "--method", "bands", "--edges", 0.7, 0.2), "edges must ascend")
    assert not any(Path().iterdir())


def test_bake_writes_a_pipeline(cli: Run, adapters: dict[str, Path]) -> None:
    code, out, err = cli("bake", f"{adapters['wara']}:0.8", f"{adapters['lora']}:0.5", "--output", "baked")
    assert code == 0, err
    assert out.strip() == "baked: wara x 0.8, lora x 0.5"
    flags = ("--prompt", "a cat", "--steps", 2, "--guidance_scale", 2)
    blend = ("--adapter", f"{adapters['wara']}:0.8", "--adapter", f"{adapters['lora']}:0.5")
    assert cli("generate", *flags, "--base", "baked", "--output", "baked.png")[0] == 0
    assert cli("generate", *flags, *blend, "--output", "blend.png")[0] == 0
    assert (pixels("baked.png") - pixels("blend.png")).abs().max() <= 1
    assert_fails(cli("bake", adapters["lora"], "--output", "baked"), "baked exists")
    assert_fails(cli("bake", adapters["lora"]), "--output")
