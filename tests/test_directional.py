"""A step on several domains: its gradients are those of plain autograd, checkpointed or not, and cost what they may."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from diffusion_adapters import add_adapter, set_adapters
from tests.tiny import save_pipeline
from train.bases import inspect_base, load_base
from train.data import CachedImages
from train.data.folder import Example
from train.directional import Directional
from train.domain_options import SOURCE
from train.domains import balanced
from train.dreambooth import DreamBoothOptions
from train.features import DenoiserFeatures, make_features
from train.subspace import displacement_loss, structure_loss

NAMES = ("warm", "dark")


def picture(name: str, number: int, side: int) -> Image.Image:
    """Noise of a colour that goes by the domain."""
    rng = np.random.default_rng([number, *name.encode()])
    colour = {"warm": (230, 120, 60), "dark": (20, 20, 60), SOURCE: (120, 160, 120)}[name]
    return Image.fromarray(np.clip(rng.normal(colour, 30, (side, side, 3)), 0, 255).astype(np.uint8))


class Setting:
    """A base, two adapters for two domains, and what a step on all of them is made of."""

    def __init__(self, folder: str, side: int, stirred: bool = True, **options: object) -> None:
        told = {"pretrained_model_name_or_path": folder, "least_separability": 0.0, **options}
        self.config = DreamBoothOptions(adapter="hybrid", resolution=side, **told)
        self.base = load_base(inspect_base(self.config), self.config, torch.device("cpu"), torch.float32)
        examples = [
            Example(f"{name}/{i}", [picture(name, i, side)], "a photo", (side, side), domain=name)
            for name in (*NAMES, SOURCE)
            for i in range(4)
        ]
        self.dataset = CachedImages(self.base, examples, group=2)
        torch.manual_seed(0)
        for name in NAMES:
            self.adapters = add_adapter(self.base.denoiser, name, "lora", rank=2)
        for parameter in self.adapters.parameters() if stirred else ():
            torch.nn.init.normal_(parameter, std=0.05)

    def turn(self, domain: str | None) -> None:
        set_adapters(self.base.pipeline, [name for name in NAMES if domain in (None, name)])

    def objective(self) -> Directional:
        features = make_features(self.config.encoder, self.base, torch.device("cpu"))
        return Directional(self.config, self.base, self.dataset, self.adapters, features, self.turn)

    def batch(self, domain: str) -> dict[str, torch.Tensor]:
        for step in range(100):
            batch = self.dataset.batch([2 * step, 2 * step + 1], seed=0)
            if self.dataset.domains[int(batch["domain"][0])] == domain:
                return batch
        raise AssertionError(f"no step on {domain}")

    def gradients(self, value: torch.Tensor) -> list[torch.Tensor]:
        self.adapters.zero_grad()
        value.backward()
        return [torch.zeros(1) if p.grad is None else p.grad.clone() for p in self.adapters.parameters()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pipeline(tmp_path_factory.mktemp("base") / "tiny"))


def test_the_gradient_is_that_of_the_whole_graph(tiny: str) -> None:
    setting = Setting(tiny, 16, level_buckets=1, structure_weight=0.5, hybrid_loss="translation")
    objective, batch = setting.objective(), setting.batch(SOURCE)
    value, parts = objective(setting.base, setting.base.denoiser, setting.adapters, batch)
    found = setting.gradients(value)

    base, unet = setting.base, setting.base.denoiser
    told = {**batch, "spread": objective.level(batch["spread"])}
    encoder, way = DenoiserFeatures(base), objective.references[0][0].way
    with torch.no_grad(), setting.adapters.bypassed():
        before = base.predict(unet, told).denoised()
        source = encoder(before, batch)
    after = base.predict(unet, told).denoised()
    with setting.adapters.bypassed():
        target = encoder(after, batch)
    whole = displacement_loss(source, target, way).mean() + 0.5 * structure_loss(before, after).mean()
    assert value.item() == pytest.approx(whole.item(), rel=1e-5)
    assert set(parts) == {"loss_hybrid", "loss_structure"}
    for one, other in zip(found, setting.gradients(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert any(gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize("loss", ["coordinates", "translation", "subspace", "direction", "both"])
def test_checkpointing_changes_no_gradient(tiny: str, loss: str) -> None:
    setting = Setting(tiny, 16, hybrid_loss=loss)
    objective, found = setting.objective(), []
    batches = [setting.batch(name) for name in (*NAMES, SOURCE)]
    for checkpointed in (False, True):
        if checkpointed:
            setting.base.denoiser.enable_gradient_checkpointing()
        for batch in batches:
            value, _ = objective(setting.base, setting.base.denoiser, setting.adapters, batch)
            found.append(setting.gradients(value))
    for plain, again in zip(found[:3], found[3:], strict=True):
        for one, other in zip(plain, again, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    half = len(found[0]) // 2
    touched = [any(g.abs().max() > 0 for g in part) for part in (found[0][:half], found[0][half:])]
    assert touched == [True, False]  # a domain's pictures train its own part
    assert all(gradient.abs().max() > 0 for gradient in found[2][1::2])


def test_at_the_start_nothing_moved_and_all_is_finite(tiny: str) -> None:
    setting = Setting(tiny, 16, stirred=False, hybrid_loss="both")
    objective = setting.objective()
    value, parts = objective(setting.base, setting.base.denoiser, setting.adapters, setting.batch(SOURCE))
    assert parts["loss_structure"].item() == pytest.approx(0, abs=1e-10)
    assert parts["loss_hybrid"].item() > 0
    assert all(torch.isfinite(gradient).all() for gradient in setting.gradients(value))


def test_equal_domains_and_equal_pictures_are_refused(tiny: str) -> None:
    setting = Setting(tiny, 16, least_separability=1e-9)
    by_name = {example.name: example for example in setting.dataset.examples}
    for i in range(4):
        object.__setattr__(by_name[f"dark/{i}"], "keys", by_name[f"warm/{i}"].keys)
    with pytest.raises(ValueError, match="--encoder denoiser cannot tell the domains apart: two domains are one to it"):
        setting.objective()
    setting.config = dataclasses.replace(setting.config, least_separability=1e3)
    with pytest.raises(ValueError, match=r"is as the source to it .* or lower --least_separability 1000"):
        setting.objective()

    class Collapsed(DenoiserFeatures):
        def __call__(self, latents: torch.Tensor, batch: object) -> torch.Tensor:
            return torch.ones(len(latents), 8) / 8**0.5

    with pytest.raises(ValueError, match="warm, as denoiser sees it: its 4 pictures have the same features"):
        Directional(setting.config, setting.base, setting.dataset, setting.adapters, [Collapsed(setting.base)], print)


def test_encoders_add_up_and_a_tower_sees_decoded_pictures(tiny: str) -> None:
    setting = Setting(tiny, 16, encoder=("denoiser", "pipelines/pocket/encoder"))
    objective = setting.objective()
    value, parts = objective(setting.base, setting.base.denoiser, setting.adapters, setting.batch(SOURCE))
    assert any(gradient.abs().max() > 0 for gradient in setting.gradients(value))
    alone = Setting(tiny, 16).objective()
    once = alone(setting.base, setting.base.denoiser, setting.adapters, setting.batch(SOURCE))[1]
    assert parts["loss_hybrid"] > once["loss_hybrid"]
    weaker, better = sorted(min(means.values()) for means, _ in objective.separability.values())
    setting.config = dataclasses.replace(setting.config, least_separability=(weaker + better) / 2)
    assert len(setting.objective().hopeless) == 1  # beside one that sees enough
    setting.config = dataclasses.replace(setting.config, least_separability=2 * better)
    with pytest.raises(ValueError, match="cannot tell the domains apart"):
        setting.objective()


def test_a_step_costs_at_most_2_2_of_a_dreambooth_step() -> None:
    """Multiplications and what is kept for the backward pass, on the embedded base."""
    setting = Setting("pipelines/pocket", 48)
    objective = setting.objective()
    costs, kept = {}, {}
    for name in (NAMES[0], SOURCE):
        batch, held = setting.batch(name), {}

        def keep(value: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
            value, _ = objective(setting.base, setting.base.denoiser, setting.adapters, batch)
            value.backward()
        costs[name], kept[name] = counter.get_total_flops(), sum(held.values())
    assert costs[SOURCE] < 2.2 * costs[NAMES[0]]
    assert kept[SOURCE] < 2.2 * kept[NAMES[0]]


def test_the_bundled_domains_are_small_and_what_the_command_draws(tmp_path: Path) -> None:
    from train.domain_options import SAMPLE_DOMAINS
    from train.world.domains import BUNDLED, write

    files = [file for file in SAMPLE_DOMAINS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 200 * 1024
    assert {file.parent.name for file in files} == set(BUNDLED)
    for name in BUNDLED:
        for file in write(name, tmp_path / name).glob("*.png"):
            drawn, kept = (np.asarray(Image.open(path)) for path in (file, SAMPLE_DOMAINS / name / file.name))
            assert np.array_equal(drawn, kept)


def test_options_weigh_the_parts_of_the_loss(tiny: str) -> None:
    def parts(**options: object) -> dict[str, float]:
        setting = Setting(tiny, 16, **options)
        value, found = setting.objective()(setting.base, setting.base.denoiser, setting.adapters, setting.batch(SOURCE))
        return {"whole": value.item(), **{name: part.item() for name, part in found.items()}}

    plain = parts(structure_weight=1.0)
    assert plain["whole"] == pytest.approx(plain["loss_hybrid"] + plain["loss_structure"], rel=1e-5)
    twice = parts(structure_weight=2.0, hybrid_weight=3.0)
    assert twice["loss_structure"] == pytest.approx(2 * plain["loss_structure"], rel=1e-5)
    assert twice["whole"] == pytest.approx(3 * (twice["loss_hybrid"] + twice["loss_structure"]), rel=1e-5)
    assert "loss_structure" not in parts(structure_weight=0.0)
    near, far = (parts(hybrid_loss="subspace", direction_weight=weight)["loss_hybrid"] for weight in (0.0, 1.0))
    assert near < far
    ranks = [
        len(Setting(tiny, 16, subspace_energy=share).objective().references[0][0].spans[0].basis) for share in (0.1, 1)
    ]
    assert ranks == [1, 3]


def test_steps_are_shared_out_as_asked() -> None:
    def example(domain: str, number: int) -> Example:
        return Example(f"{domain}/{number}", [picture(domain, number, 8)], "a photo", (8, 8), domain=domain)

    examples = [example("warm", i) for i in range(4)] + [example("dark", i) for i in range(8)]
    sources = [example(SOURCE, i) for i in range(32)]
    for share in (0.25, 0.5, 2 / 3, 0.9):
        found = balanced(examples, sources, share)
        counts = {name: sum(e.repeats for e in found if e.domain == name) for name in (*NAMES, SOURCE)}
        assert counts["warm"] == counts["dark"]
        assert counts[SOURCE] / sum(counts.values()) == pytest.approx(share, abs=0.02)
