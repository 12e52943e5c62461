"""What `benchmark.py --hybrid` reads off pictures: each score on pictures whose score is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.benchmarks import hybrid_cost
from train.benchmarks.judge import HEADS
from train.benchmarks.mixture_scores import Scorer, edges, interval, structure
from train.benchmarks.mixtures import Mixture

SIDE = 8
GREYS = {"flat": 0, "red": 10, "blue": 20, "teal": 30}
"""Pictures of one grey: what the stand-ins below know them by."""
LOOKS = {"flat": [1.0, 0, 0], "red": [0.0, 1, 0], "blue": [0.0, 0, 1], "teal": [0.0, 0.6, 0.8]}


def picture(name: str) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), (GREYS[name],) * 3)


def name_of(image: Image.Image) -> str:
    return next(name for name, grey in GREYS.items() if image.getpixel((0, 0))[0] == grey)


class Encoder:
    """One vector for each grey."""

    def images(self, pictures: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([LOOKS[name_of(image)] for image in pictures])


@dataclass
class Judge:
    """Sees neon in red and teal, mosaic in blue and teal; takes the kind and colour of `reads` by grey."""

    reads: dict[str, tuple[int, int]]
    odds: dict[str, list[float]]

    def read(self, pictures: list[Image.Image]) -> torch.Tensor:
        rows = []
        for image in pictures:
            row = dict.fromkeys(HEADS, 0)
            row["kind"], row["colour"] = self.reads[name_of(image)]
            row["subject"] = list(GREYS).index(name_of(image))
            rows.append(list(row.values()))
        return torch.tensor(rows)

    def kinds(self, pictures: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([self.odds[name_of(image)] for image in pictures])

    def domains(self, read: torch.Tensor, names: tuple[str, ...]) -> np.ndarray:
        seen = {"neon": ("red", "teal"), "mosaic": ("blue", "teal")}
        drawn = [list(GREYS)[int(row[list(HEADS).index("subject")])] for row in read]
        return np.array([[float(one in seen[name]) for name in names] for one in drawn])


@pytest.fixture
def scorer() -> Scorer:
    sure = {name: np.eye(4)[i].tolist() for i, name in enumerate(GREYS)}
    judge = Judge({"flat": (0, 0), "red": (0, 0), "blue": (0, 1), "teal": (0, 0)}, sure)
    return Scorer(judge, Encoder(), {"neon": [picture("red")], "mosaic": [picture("blue"), picture("teal")]})  # type: ignore[arg-type]


def test_domains_content_likeness_and_diversity(scorer: Scorer) -> None:
    rows = [[picture("teal"), picture("red")], [picture("blue"), picture("blue")]]
    base = [[picture("flat")] * 2] * 2
    found = scorer(Mixture(("neon", "mosaic")), rows, base)
    assert found["all"].tolist() == [[1, 0], [0, 0]]
    assert found["domain neon"].tolist() == [[1, 1], [0, 0]]
    assert found["domain mosaic"].tolist() == [[1, 0], [1, 1]]
    assert found["weakest"].tolist() == found["domain neon"].tolist()  # two pictures of four against three
    # Of kind, colour and background a blue picture has another colour than the base's.
    assert found["content"] == pytest.approx(np.array([[1, 1], [2 / 3, 2 / 3]]))
    assert found["product"] == pytest.approx(np.array([[1, 0], [0, 0]]))
    # Mean cosines with neon .6, 1, 0, 0, with mosaic (.8 + 1) / 2, .6 / 2, (1 + .8) / 2 twice: neon's mean is less.
    assert found["likeness"] == pytest.approx(np.array([[0.6, 1.0], [0.0, 0.0]]))
    assert found["diversity"] == pytest.approx(np.array([[0.4, 0.4], [0.0, 0.0]]), abs=1e-7)


def test_the_inception_like_score_counts_the_kinds_it_is_sure_of(scorer: Scorer) -> None:
    base = [[picture("flat")] * 2] * 2
    mixture = Mixture(("neon", "mosaic"))
    for rows, kinds in (
        ([["flat", "red"], ["blue", "teal"]], 4.0),
        ([["flat", "red"], ["flat", "red"]], 2.0),
        ([["red", "red"], ["red", "red"]], 1.0),
    ):
        found = scorer(mixture, [[picture(name) for name in row] for row in rows], base)
        assert interval("inception", found["inception"]).mean == pytest.approx(kinds, rel=1e-5)


def step(height: float) -> torch.Tensor:
    """(1, 3, 4, 6): dark on the left, lighter by `height` on the right."""
    image = torch.zeros(1, 3, 4, 6)
    image[..., 3:] = height
    return image


def test_edges_are_those_of_sobel() -> None:
    found = edges(step(0.5)).reshape(4, 6)
    assert found[:, 2:4].tolist() == [[2.0, 2.0]] * 4  # (1 + 2 + 1) · 0.5
    assert (found[:, [0, 1, 4, 5]] == 0).all()
    assert edges(step(0.5).transpose(2, 3)).reshape(6, 4)[2].tolist() == [2.0] * 4


def test_structure_is_kept_by_equal_edges_only() -> None:
    one, double = step(0.5), step(1.0)
    assert structure(one, one).item() == pytest.approx(1.0)
    assert structure(one, double).item() == pytest.approx(2 * 2 / (1 + 4))
    assert structure(one, torch.zeros_like(one)).item() == 0.0
    moved = one.roll(2, 3)
    moved[..., :2] = 0  # the edge stands elsewhere
    assert structure(one, moved).item() == 0.0


@pytest.mark.slow
def test_a_step_on_all_domains_takes_less_than_2_2_of_a_dreambooth_step(tmp_path: Path) -> None:
    cost = hybrid_cost.measure("lora", tmp_path, repeats=5)
    assert set(cost) == set(hybrid_cost.RUNS)
    assert max(cost["on all domains, mixing"].values()) < 2.2
    assert max(cost["on all domains, parts too"].values()) < 2.2
    assert "| on one domain | 1.00 |" in hybrid_cost.table(cost)
