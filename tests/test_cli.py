"""The command line: what each command prints and writes, and one line for everything that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_adapters import FAMILIES, MERGERS, add_adapter, load_adapter, save_adapter
from diffusion_adapters.cli import common, main
from diffusion_adapters.cli.common import parse_adapter
from tests.hosts import build, pipeline, pipeline_folder, sample, small, stir

ROOT = Path(__file__).parents[1]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in an empty folder, with the tiny pipeline as the embedded base: exit code, stdout, stderr."""
    monkeypatch.setattr(common, "POCKET", pipeline_folder())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return call


def trained(path: Path, family: str = "lora", seed: int = 2, host: str | None = None) -> Path:
    """An adapter file for the tiny pipeline, or for a denoiser of the zoo."""
    model = build(host) if host else pipeline()
    stir(add_adapter(model, "one", family, **small(family)).parameters(), seed=seed)
    return save_adapter(model, "one", path, trigger="a sks cat", training={"steps": 7})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {family: trained(folder / f"{family}.safetensors", family) for family in FAMILIES}
    return made | {"other": trained(folder / "other.safetensors", seed=9)}


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def assert_fails(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, nothing promised on stdout, and one line on stderr with all of `words`."""
    code, _, err = result
    assert code == 2
    message = last_line(err)
    assert "error: " in message
    assert "Traceback" not in err
    for word in words:
        assert word in message, err


# ---- generate --------------------------------------------------------------------------------------------------------


def test_generate_draws_with_the_embedded_base(run: Run) -> None:
    code, out, _ = run("generate", "--prompt", "a cat", "--steps", 1)
    assert code == 0
    assert out.strip() == "image.png"
    assert Image.open("image.png").size == (16, 16)


def pixels(path: str | Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8).float()


def test_adapters_and_their_weights_change_the_picture(run: Run, files: dict[str, Path]) -> None:
    def draw(name: str, *adapters: str) -> torch.Tensor:
        flags = [word for adapter in adapters for word in ("--adapter", adapter)]
        code, _, err = run("generate", "--prompt", "a cat", "--steps", 2, "--output", name, *flags)
        assert code == 0, err
        return pixels(name)

    one, two = files["lora"], files["other"]
    pictures = [
        draw("base.png"),
        draw("one.png", f"{one}"),
        draw("half.png", f"{one}:0.5"),
        draw("two.png", f"{two}"),
        draw("both.png", f"{one}:0.5", f"{two}:-1.5"),
    ]
    for i, first in enumerate(pictures):
        assert all(not torch.equal(first, second) for second in pictures[:i])
    assert torch.equal(draw("again.png", f"{one}:1"), pictures[1])
    assert torch.equal(draw("zero.png", f"{one}:0", f"{two}:0"), pictures[0])


def test_generate_is_what_the_library_draws(run: Run, files: dict[str, Path]) -> None:
    """At the guidance that suits the embedded base, unless told otherwise."""
    run("generate", "--prompt", "a red cat", "--steps", 2, "--seed", 0, "--adapter", f"{files['lora']}:0.7")
    pipe = pipeline()
    load_adapter(pipe, files["lora"], adapter_weight=0.7)
    (image,) = sample(pipe, output_type="pil", guidance_scale=common.POCKET_GUIDANCE)
    image.save("wanted.png")
    assert torch.equal(pixels("image.png"), pixels("wanted.png"))


def test_several_pictures_are_numbered_by_seed(run: Run) -> None:
    code, out, _ = run("generate", "--prompt", "a cat", "--steps", 1, "--num_images", 2, "--output", "new/cat.png")
    assert code == 0
    assert out.split() == [str(Path("new") / "cat_0.png"), str(Path("new") / "cat_1.png")]
    run("generate", "--prompt", "a cat", "--steps", 1, "--seed", 1, "--output", "seed1.png")
    assert torch.equal(pixels("new/cat_1.png"), pixels("seed1.png"))
    assert not torch.equal(pixels("new/cat_0.png"), pixels("seed1.png"))


def test_a_base_can_be_given(run: Run) -> None:
    run("generate", "--prompt", "a cat", "--steps", 1, "--output", "embedded.png")
    code, _, _ = run("generate", "--prompt", "a cat", "--steps", 1, "--base", pipeline_folder(seed=1))
    assert code == 0
    assert not torch.equal(pixels("image.png"), pixels("embedded.png"))


@pytest.mark.parametrize("name", ["image", "image.nosuch", "image.safetensors"])
def test_a_picture_that_cannot_be_written_is_noticed_first(run: Run, name: str) -> None:
    assert_fails(run("generate", "--prompt", "a cat", "--steps", 1, "--output", name), "--output", name, ".png")
    assert not any(Path().iterdir())


@pytest.mark.parametrize("flag", ["--num_images", "--steps"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_counts_must_be_positive(run: Run, flag: str, value: str) -> None:
    assert_fails(run("generate", "--prompt", "a cat", flag, value), flag.strip("-"), value)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("a.safetensors:1e-1", "a.safetensors", 0.1),
        ("C:\\a.safetensors", "C:\\a.safetensors", 1.0),
        ("C:\\a.safetensors:2", "C:\\a.safetensors", 2.0),
        ("dir:1/a.safetensors:2", "dir:1/a.safetensors", 2.0),
    ],
)
def test_file_and_weight_are_told_apart(text: str, path: str, weight: float) -> None:
    assert parse_adapter(text) == (Path(path), weight)


def test_an_existing_file_wins_over_a_weight(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors:2"
    path.write_bytes(b"")
    assert parse_adapter(str(path)) == (path, 1.0)
    assert parse_adapter(f"{path}:3") == (path, 3.0)


# ---- inspect, families, export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_tells_what_a_file_is(run: Run, files: dict[str, Path], family: str) -> None:
    code, out, err = run("inspect", files[family])
    assert code == 0, err
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert family in rows["family"]
    assert str(files[family]) in rows["file"]
    assert "KiB" in rows["file"]
    for option, value in FAMILIES[family].Config(**small(family)).as_dict().items():
        assert f"{option}={value}" in rows["options"]
    assert "all attention projections" in rows["targets"]
    assert "a sks cat" in rows["trigger"]
    assert "steps=7" in rows["training"]
    assert "diffusion-adapters" in rows["format"]
    assert "UNet2DConditionModel" in rows["base"]
    assert "32 layers" in rows["unet"]


def test_families_lists_every_option_and_alias(run: Run) -> None:
    code, out, _ = run("families")
    assert code == 0
    for family in FAMILIES:
        assert any(line.startswith(family) for line in out.splitlines())
        for alias in FAMILIES.aliases(family):
            assert f"alias {alias}" in out
        for option, value in FAMILIES[family].Config().as_dict().items():
            assert any(line.split()[0] == option and f"(default: {value})" in line for line in out.splitlines())


@pytest.mark.parametrize("family", FAMILIES)
def test_export_writes_what_stock_diffusers_reads(run: Run, files: dict[str, Path], family: str) -> None:
    code, out, err = run("export", files[family], "--output", "lora.safetensors", "--rank", 16)
    assert code == 0, err
    assert out.startswith("lora.safetensors: rank ")
    assert "exact" in out or "relative error" in out
    ours, stock = pipeline(), pipeline()
    load_adapter(ours, files[family])
    stock.load_lora_weights("lora.safetensors")
    assert (sample(ours) - sample(stock)).abs().max() < 1e-4


def test_export_lies_beside_the_adapter_unless_told(run: Run, tmp_path: Path) -> None:
    file = trained(tmp_path / "sub" / "one.safetensors")
    code, out, _ = run("export", file)
    assert code == 0
    assert (tmp_path / "sub" / "pytorch_lora_weights.safetensors").exists()
    assert out.strip().endswith("exact")


def test_export_of_a_blend_in_half_precision_for_kohya(run: Run, files: dict[str, Path]) -> None:
    flags = ("--dtype", "fp16", "--dialect", "kohya", "--output", "blend.safetensors")
    code, out, err = run("export", f"{files['lora']}:0.5", f"{files['other']}:-1", *flags)
    assert code == 0, err
    assert "exact but for the rounding to fp16, relative error " in out
    assert 1e-5 < float(out.split()[-1]) < 1e-3
    ours, stock = pipeline(), pipeline()
    for name, weight in (("lora", 0.5), ("other", -1.0)):
        load_adapter(ours, files[name], adapter_weight=weight)
    stock.load_lora_weights("blend.safetensors")
    assert (sample(ours) - sample(stock)).abs().max() < 1e-3


def test_merge_writes_an_adapter_like_any_other(run: Run, files: dict[str, Path]) -> None:
    code, out, err = run("merge", f"{files['lora']}:0.5", f"{files['other']}:-1", "--output", "sum.safetensors")
    assert code == 0, err
    assert out.startswith("sum.safetensors: rank ")
    assert out.strip().endswith("exact")
    ours, sum_ = pipeline(), pipeline()
    for name, weight in (("lora", 0.5), ("other", -1.0)):
        load_adapter(ours, files[name], adapter_weight=weight)
    load_adapter(sum_, "sum.safetensors")
    assert (sample(ours) - sample(sum_)).abs().max() < 1e-4
    words = ("merge", files["wara"], files["loldu"], "--method", "ties", "--density", 0.3, "--rank", 2)
    code, out, err = run(*words)
    assert code == 0, err
    assert out.startswith("merged.safetensors: rank 2, relative error 0.")
    assert run("inspect", "merged.safetensors")[0] == 0


def test_merge_knows_its_methods_and_their_options(run: Run, files: dict[str, Path]) -> None:
    code, out, _ = run("merge", "--help")
    assert code == 0
    for method in MERGERS:
        assert any(line.split()[:1] == [method] for line in out.splitlines())
        for option in MERGERS[method].Config().as_dict():
            assert f"--{option}" in out
    assert_fails(run("merge", files["lora"], "--method", "linear", "--density", 0.5), "unknown option 'density'")
    assert_fails(run("merge", files["lora"], "--method", "tis"), "--method", "tis")
    assert_fails(run("merge", files["lora"], "--method", "bands", "--edges", 0.7, 0.2), "edges must ascend")
    assert not any(Path().iterdir())


def test_bake_writes_a_pipeline(run: Run, files: dict[str, Path]) -> None:
    code, out, err = run("bake", f"{files['wara']}:0.8", f"{files['lora']}:0.5", "--output", "baked")
    assert code == 0, err
    assert out.strip() == "baked: wara x 0.8, lora x 0.5"
    flags = ("--prompt", "a cat", "--steps", 2, "--guidance_scale", 2)
    blend = ("--adapter", f"{files['wara']}:0.8", "--adapter", f"{files['lora']}:0.5")
    assert run("generate", *flags, "--base", "baked", "--output", "baked.png")[0] == 0
    assert run("generate", *flags, *blend, "--output", "blend.png")[0] == 0
    assert (pixels("baked.png") - pixels("blend.png")).abs().max() <= 1
    assert_fails(run("bake", files["lora"], "--output", "baked"), "baked exists")
    assert_fails(run("bake", files["lora"]), "--output")


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_commands_that_do_not_exist(run: Run) -> None:
    assert_fails(run("genrate"), "genrate", "generate")
    assert_fails(run(), "COMMAND")
    assert_fails(run("generate"), "--prompt")
    assert_fails(run("generate", "--prompt", "a cat", "--step", "3"), "--step")


@pytest.mark.parametrize("command", ["generate", "inspect", "export"])
def test_wrong_files(run: Run, tmp_path: Path, files: dict[str, Path], command: str) -> None:
    def call(path: object) -> tuple[int, str, str]:
        return run("generate", "--prompt", "x", "--adapter", path) if command == "generate" else run(command, path)

    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.bin")
    (tmp_path / "cut.safetensors").write_bytes(files["lora"].read_bytes()[:200])
    assert_fails(call("absent.safetensors"), "no adapter file at absent.safetensors")
    (tmp_path / "empty").mkdir()
    assert_fails(call(tmp_path / "empty"), "no .safetensors file in")
    assert_fails(call(tmp_path / "pickle.bin"), "pickle.bin", "a pickle can run code", ".safetensors")
    assert_fails(call(tmp_path / "cut.safetensors"), "cut.safetensors", "truncated")
    assert not any(Path().iterdir())


def test_wrong_weights(run: Run, files: dict[str, Path]) -> None:
    for weight in ("half", "", "1,5"):
        result = run("generate", "--prompt", "x", "--adapter", f"{files['lora']}:{weight}")
        assert_fails(result, f"the weight {weight!r} is not a number", "FILE:WEIGHT")
    for weight in ("nan", "inf"):
        assert_fails(run("generate", "--prompt", "x", "--adapter", f"{files['lora']}:{weight}"), "finite", weight)
    assert not any(Path().iterdir())


def test_wrong_bases(run: Run, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert_fails(
        run("generate", "--prompt", "x", "--base", "no/such/folder"), "--base no/such/folder", "no such folder"
    )
    assert_fails(run("generate", "--prompt", "x", "--base", tmp_path / "empty"), "empty")
    assert_fails(run("export", files["lora"], "--base", "./nosuch"), "--base ./nosuch", "no such folder")
    foreign = trained(tmp_path / "foreign.safetensors", host="flux")
    for words in (("generate", "--prompt", "x", "--adapter", foreign), ("export", foreign)):
        assert_fails(run(*words), "made for another base", "FluxTransformer2DModel", "UNet2DConditionModel")
    monkeypatch.setattr(common, "POCKET", tmp_path / "absent")
    assert_fails(run("generate", "--prompt", "x"), "the embedded base lies in the clone", "--base")


def test_wrong_places_to_write(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    assert_fails(run("generate", "--prompt", "x", "--output", tmp_path), "--output", "is a folder")
    assert_fails(run("export", files["lora"], "--output", tmp_path), "is a folder")
    assert_fails(run("export", files["lora"], "--rank", 0), "--rank", "at least 1, got '0'")
    assert_fails(run("export", files["lora"], "--dtype", "int8"), "--dtype", "int8")
    assert_fails(run("export", files["lora"], "--energy", 2), "energy", "2.0")
    (tmp_path / "file").write_text("x")
    assert_fails(run("generate", "--prompt", "x", "--steps", 1, "--output", tmp_path / "file" / "a.png"), "file")


def test_a_full_disk_says_so(run: Run, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert_fails(run("export", files["lora"], "--output", "a.safetensors"), "nothing was saved", "free some space")
    assert not any(Path().iterdir())


def test_as_a_process(files: dict[str, Path]) -> None:
    """The module runs as typed; importing what `inspect` needs is all it does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "diffusion_adapters", "inspect"]
    good = subprocess.run([*command, str(files["lora"])], env=environment, capture_output=True, text=True, timeout=300)
    assert good.returncode == 0
    assert "a sks cat" in good.stdout
    bad = subprocess.run([*command, "absent"], env=environment, capture_output=True, text=True, timeout=300)
    assert bad.returncode == 2
    assert bad.stderr.strip().splitlines()[-1] == "error: no adapter file at absent"
    assert "Traceback" not in bad.stderr
