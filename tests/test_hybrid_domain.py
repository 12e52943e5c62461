"""train/hybrid_domain.py: what it leaves, resumption and processes, and every way in which it can be told wrong."""

from __future__ import annotations

import itertools
import os
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_adapters import FAMILIES, add_adapter, load_adapter, save_adapter, set_adapters
from diffusion_adapters.file import read_adapter
from tests import forked
from tests.test_directional import NAMES, picture
from tests.tiny import save_pipeline
from train import dreambooth, hybrid_domain
from train.bases import inspect_base, load_base
from train.domain_options import SOURCE
from train.tasks import rates

FAST = {
    "max_train_steps": 6, "num_inference_steps": 1, "num_validation_images": 1, "num_source_images": 3,
    "hybrid_start": 0.67, "least_separability": 0.0, "rank": 2, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a folder of three pictures for each domain."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).mkdir()
        for i in range(3):
            picture(name, i, 16).save(f"{name}/{i}.png")
    return tmp_path


PARTS_ALONE = ("rank", "learning_rate", "hybrid_start")
"""Of FAST, what has no effect where parts are given."""


def words(base: Path, **options: object) -> list[str]:
    """A command line with two domains, unless `options` say else."""
    fast = {name: value for name, value in FAST.items() if not ("part" in options and name in PARTS_ALONE)}
    said = {"pretrained_model_name_or_path": base, **fast, "domain": [f"{name}={name}" for name in NAMES], **options}
    line = []
    for name, value in said.items():
        line += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}", str(value)]
    return line


def trained(folder: str | Path) -> dict[str, torch.Tensor]:
    """The numbers of an output folder's adapter by place and name."""
    tensors = read_adapter(Path(folder) / "adapter.safetensors").tensors
    return {f"{c} {p} {n}": v for c, places in tensors.items() for p, own in places.items() for n, v in own.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_it_leaves_an_adapter_with_a_dial_for_each_domain(base: Path, place: Path, capsys) -> None:
    assert hybrid_domain.main(words(base)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "Encoder denoiser: separability warm" in said.out.replace("\n", " ")
    out = Path("dreambooth-hybrid")
    assert {"adapter.safetensors", "grid.png", "README.md", "config.toml", SOURCE} <= {f.name for f in out.iterdir()}
    assert len(list((out / SOURCE).glob("*.png"))) == 3
    card = (out / "README.md").read_text("utf-8")
    assert "trained on pictures of warm (3) and dark (3)" in card
    assert 'domain_weights={"warm": 1.0, "dark": 0.5}' in card
    assert "--domain warm=1 --domain dark=0.5" in card
    assert "Trigger" not in card
    values = trained(out)
    for name in (*NAMES, "coefficients"):
        assert any(name in key for key in values)
    config = tomllib.loads((out / "config.toml").read_text("utf-8"))
    assert (config["adapter"], config["family"], config["rank"]) == ("hybrid", "lora", 2)

    again = ["--config", str(out / "config.toml"), "--output_dir", "again", "--source_data_dir", str(out / SOURCE)]
    assert dreambooth.main(again) == 0  # by configuration, with the source pictures that are there
    assert same(values, trained("again"))

    config = dreambooth.DreamBoothOptions(pretrained_model_name_or_path=str(base))
    pipe = load_base(inspect_base(config), config, torch.device("cpu"), torch.float32).pipeline
    name = load_adapter(pipe, out / "adapter.safetensors")

    def drawn(**dials: float) -> torch.Tensor:
        set_adapters(pipe, name, domain_weights=dials)
        seed = torch.Generator().manual_seed(0)
        return torch.tensor(pipe("a photo", num_inference_steps=1, generator=seed, output_type="np").images)

    whole, warm, dark, none = (drawn(warm=w, dark=d) for w, d in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)))
    set_adapters(pipe, [])
    plain = pipe("a photo", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert torch.equal(none, torch.tensor(plain))
    for one, other in ((whole, warm), (whole, dark), (warm, none), (dark, none)):
        assert (one - other).abs().max() > 1e-5  # more than rounding


def test_pictures_show_every_domain_and_the_captions(base: Path, place: Path) -> None:
    for name in NAMES:
        for i in range(3):
            Path(f"{name}/{i}.txt").write_text(f"a photo of thing {i} by {name}")
    assert hybrid_domain.main(words(base)) == 0
    config = tomllib.loads(Path("dreambooth-hybrid/config.toml").read_text("utf-8"))
    things = [f"a photo of thing {i} by warm" for i in range(3)]
    assert config["validation_prompt"] == [*things, "a photo of thing 0 by dark"]
    with Image.open("dreambooth-hybrid/grid.png") as sheet:
        colours = [sheet.convert("RGB").getpixel((20 + 197 * i, 150)) for i in range(2)]
    assert colours[0][0] > colours[0][2] + 50  # warm, then dark
    assert max(colours[1]) < 140


def test_parts_are_done_when_their_mixing_begins(base: Path, place: Path) -> None:
    told = {"num_validation_images": 0, "source_data_dir": "sources", "max_train_steps": 9}
    for rate in (0.001, 0.3):
        assert hybrid_domain.main(words(base, output_dir=f"rate-{rate}", coefficient_lr=rate, **told)) == 0
    slow, fast = trained("rate-0.001"), trained("rate-0.3")
    for name, value in slow.items():
        assert torch.equal(value, fast[name]) == ("parts." in name)
    assert hybrid_domain.main(words(base, output_dir="all", hybrid_values="all", **told)) == 0
    assert not any(torch.equal(value, slow[name]) for name, value in trained("all").items())


def test_parts_have_the_rates_of_their_families(base: Path, place: Path) -> None:
    line = ["--adapter", "hybrid", *words(base, family="loldu", rank=4, learning_rate=0.01, coefficient_lr=0.5)]
    config, _ = dreambooth.parse(dreambooth.DreamBoothOptions, None, line)
    kinds = {"warm": {"family": "loldu", "rank": 4, "alpha": 4.0}, "dark": {"family": "lora"}}
    hybrid = FAMILIES["hybrid"](torch.randn(8, 8), FAMILIES["hybrid"].Config.from_mapping({"parts": kinds}))
    *parts, mixed = rates([hybrid], config, 4)
    found = {id(value): group for group in parts for value in group["params"]}
    ratio = FAMILIES["lora"].learning_rate / FAMILIES["loldu"].learning_rate
    for name, rate in (("warm", 0.01), ("dark", 0.01 * ratio)):
        for value in hybrid.parts[name].parameters():
            assert found[id(value)]["lr"] == pytest.approx(rate)
            assert found[id(value)]["steps"] == (0, 4)
    assert mixed == {"params": [hybrid.coefficients], "lr": 0.5, "steps": (4, 6)}


def test_parts_of_any_two_families_fit_a_denoiser_without_numbers(base: Path) -> None:
    info = inspect_base(dreambooth.DreamBoothOptions(pretrained_model_name_or_path=str(base)))
    families = [name for name in FAMILIES if name != "hybrid"]
    sizes = {"loldu": {"rank": 2}, "boft": {"block_size": 2, "stages": 1}, "oft": {"block_size": 2}}
    for pair in itertools.product(families, repeat=2):
        parts = {name: {"family": kind, **sizes.get(kind, {})} for name, kind in zip(NAMES, pair, strict=True)}
        blank = info.denoiser()
        assert blank is not None
        found = add_adapter(blank, "x", "hybrid", target_modules=["attn2.to_q"], parts=parts)
        assert found.places(), pair


@pytest.mark.parametrize("family", ["loldu", "wara", "transformed_lora"])
def test_parts_are_of_any_family(base: Path, place: Path, family: str) -> None:
    sizes = {"loldu": {"rank": 4, "alpha": 4.0}, "wara": {"level": 2}, "transformed_lora": {"transform_rank": 2}}
    told = {"family": family, "num_validation_images": 0, **sizes[family]}
    assert hybrid_domain.main(words(base, **told)) == 0
    assert all(torch.isfinite(value).all() for value in trained("dreambooth-hybrid").values())


@pytest.mark.slow
@pytest.mark.parametrize("values", ["mixing", "all"])
def test_two_processes_agree_with_one_of_twice_the_batch(base: Path, place: Path, values: str) -> None:
    told = {"num_validation_images": 0, "checkpointing_steps": 0, "source_data_dir": "sources"}
    told |= {
        "source_prompt": ["a photo of a cat", "a red cat"],
        "hybrid_values": values,
        "optimizer": "torch.optim.SGD",
    }
    told |= {"hybrid_share": 0.7} if values == "all" else {}
    assert hybrid_domain.main(words(base, output_dir="one", train_batch_size=2, **told)) == 0

    def work() -> None:
        assert hybrid_domain.main(words(base, output_dir="two", train_batch_size=1, **told)) == 0
        forked.save(None, Path(f"said.{os.environ.get('RANK', '0')}"))

    forked.run(work, Path("two-said"), 2)
    one, two = trained("one"), trained("two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-3 * max(float(value.abs().max()), 1e-3))


def composed(base: Path, kinds: dict[str, str], targets: dict[str, list[str]] | None = None) -> list[str]:
    """`--part` of a file for each domain, of the family that `kinds` says, and on what `targets` says."""
    config = dreambooth.DreamBoothOptions(pretrained_model_name_or_path=str(base))
    found = []
    for name, family in kinds.items():
        loaded = load_base(inspect_base(config), config, torch.device("cpu"), torch.float32)
        adapters = add_adapter(loaded.denoiser, name, family, target_modules=(targets or {}).get(name))
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        found.append(f"{name}={save_adapter(loaded.pipeline, name, Path(f'{name}.safetensors'))}")
    return found


@pytest.mark.parametrize("how", ["plain", "checkpointed", "composed"])
def test_a_run_that_was_stopped_goes_on_bitwise(base: Path, place: Path, how: str) -> None:
    told = {"gradient_accumulation_steps": 2, "num_validation_images": 0, "checkpointing_steps": 3}
    told |= {"lr_scheduler": "constant", "source_data_dir": "sources"}
    more = ["--gradient_checkpointing"] if how == "checkpointed" else []
    if how == "composed":
        told["part"] = composed(base, dict.fromkeys(NAMES, "lora"), {NAMES[0]: ["attn2.to_q"]})
    assert hybrid_domain.main([*words(base, output_dir="whole", **told), *more]) == 0
    config, adapter = dreambooth.parse(
        dreambooth.DreamBoothOptions, None, ["--adapter", "hybrid", *words(base, output_dir="parts", **told), *more]
    )
    records = []
    for record in dreambooth.run(config, adapter, lambda: len(records) == 3):
        records.append(record)
    assert len(records) == 3
    resumed = words(base, output_dir="parts", **told, resume_from_checkpoint="latest")
    assert hybrid_domain.main([*resumed, *more]) == 0
    assert same(trained("whole"), trained("parts"))


def test_composing_trains_the_mixing_alone(base: Path, place: Path) -> None:
    parts = composed(base, {"warm": "lora", "dark": "dora"})
    assert hybrid_domain.main(words(base, part=parts, num_validation_images=0, coefficient_lr=0.1)) == 0
    values = trained("dreambooth-hybrid")
    file, sources = "dreambooth-hybrid/config.toml", f"dreambooth-hybrid/{SOURCE}"
    assert dreambooth.main(["--config", file, "--output_dir", "again", "--source_data_dir", sources]) == 0
    assert same(values, trained("again"))
    mixed = {name: value for name, value in values.items() if name.endswith("coefficients")}
    assert all(value.shape == (2,) for value in mixed.values())
    assert all((value != 1).all() for value in mixed.values())
    for name in NAMES:
        for where, value in ((k, v) for k, v in values.items() if f"parts.{name}." in k):
            component, path, tensor = where.split(" ")
            kept = read_adapter(Path(f"{name}.safetensors")).tensors[component][path]
            assert torch.equal(value, kept[tensor.removeprefix(f"parts.{name}.")])
