"""Quality pilot: scores the adapter while it is trained, and keeps the best one instead of the last.

Every look draws the same prompts from the same seeds and reads subject fidelity, prompt fidelity and drift off them
(`train/ruler`). Of all looks, those stay that no other beats in all three; of these the pick is the one with the
largest product of subject and prompt fidelity, a tie going to the earlier step. Either factor alone can be had for
free: by copying the training pictures, or by learning nothing.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from diffusion_adapters.attach import adapter_sets
from diffusion_adapters.file import read_adapter
from diffusion_adapters.options import Options, option
from diffusion_adapters.text import fill_text
from diffusion_adapters.tokens import fill_tokens
from train import output, report
from train.bases.load import ROOT

LOG = logging.getLogger("train")
AXES = {"subject_fidelity": 1, "prompt_fidelity": 1, "drift": -1}
"""What is compared, and the sign of better."""
DRIFT_PROMPTS = (
    "a photo of a lake in the mountains",
    "a bowl of fruit on a wooden table",
    "a street in a city at night",
    "an oil painting of an old sailor",
)
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PilotOptions(Options):
    title: ClassVar[str] = "quality pilot"
    pilot: bool = option(False, "score the adapter at each look and keep the best; needs both encoders")
    early_stop: int | None = option(None, "with --pilot: stop after so many looks that were no better", ge=1)
    image_encoder: str | None = option(
        None, "folder or Hub id of a vision model that tells subjects apart, such as facebook/dino-vits16"
    )
    text_encoder: str | None = option(None, "folder or Hub id of a CLIP model, such as openai/clip-vit-base-patch32")
    rare_word: str = option("sks", "word that only the adapter knows: pictures are compared with prompts without it")
    drift_prompts: tuple[str, ...] = option(DRIFT_PROMPTS, "prompts whose pictures the adapter should not change")


def check(config: Any) -> None:
    """Raise ValueError for options that have no effect or lack something."""
    if config.early_stop and not config.pilot:
        raise ValueError(f"--early_stop {config.early_stop} has no effect without --pilot, which scores the adapter")
    if config.pilot and not (config.image_encoder and config.text_encoder):
        raise ValueError(
            "--pilot needs --image_encoder, such as facebook/dino-vits16, and --text_encoder, such as "
            "openai/clip-vit-base-patch32"
        )
    if config.pilot and not config.num_validation_images:
        raise ValueError("--pilot scores pictures, and --num_validation_images is 0; give at least 1")


def without(prompt: str, *rare: str) -> str:
    """A prompt as an encoder knows it, who knows no `rare` words: `a photo of sks dog` -> `a photo of a dog`."""
    return re.sub(rf"\b(?:(?:an?|the)\s+)?(?:{'|'.join(map(re.escape, rare))})\b", "a", prompt)


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats: none is at least as good in everything and better in something."""

    def beats(one: Row, other: Row) -> bool:
        gains = [sign * (one[name] - other[name]) for name, sign in AXES.items()]
        return min(gains) >= 0 and max(gains) > 0

    return [row for row in rows if not any(beats(other, row) for other in rows)]


def best(rows: Sequence[Row]) -> Row | None:
    """The pick: of the front, the largest product of the two fidelities, then the earliest."""

    def product(row: Row) -> float:
        return max(row["subject_fidelity"], 0.0) * max(row["prompt_fidelity"], 0.0)

    return max(front(rows), key=lambda row: (product(row), -row["step"]), default=None)


class Pilot:
    """The looks of a run so far, in `pilot.json`; the adapters that were the pick, in `pilot/`."""

    def __init__(self, config: Any, prompts: Sequence[str], subject: Sequence[Image.Image], device: Any) -> None:
        """Load the encoders. Raises FileNotFoundError or ValueError for what is none."""
        from train.ruler import Encoder, Ruler, Suite

        check(config)
        self.folder: Path = config.output_dir
        self.patience = config.early_stop
        encoders = {name: getattr(config, name) for name in ("image_encoder", "text_encoder")}
        rare = [config.rare_word, *(config.token_abstraction if config.train_text_encoder_ti else ())]
        texts = tuple(without(prompt, *rare) for prompt in prompts)
        suite = Suite(
            prompts=tuple(prompts),
            texts=texts,
            unrelated_prompts=config.drift_prompts,
            seeds=config.num_validation_images,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
        )
        sees, reads = (Encoder(_found(name), device) for name in encoders.values())
        self.ruler = Ruler(suite, subject, sees, reads)
        self.rows: list[Row] = []
        self.base: Any = None
        self.settings = {**encoders, "prompts": list(prompts), "drift_prompts": list(config.drift_prompts)}
        self.settings |= {"seeds": suite.numbers(), "steps": suite.num_inference_steps}

    @property
    def pick(self) -> Row | None:
        """The best look so far."""
        return best(self.rows)

    @property
    def stop(self) -> bool:
        """Whether the last `--early_stop` looks were all no better than the best before them."""
        pick = self.pick
        if pick is None or self.patience is None:
            return False
        return len([row for row in self.rows if row["step"] > pick["step"]]) >= self.patience

    def begin(self, draw: Callable[..., list[Image.Image]], step: int) -> None:
        """Draw the base, and take up the looks of this run up to `step`, from which it goes on."""
        self.base = self.ruler.draw(lambda prompts, seeds: draw(prompts, seeds, 0.0))
        saved = self._read() if step else {}
        if saved.get("settings") == self.settings:
            past = [row for row in saved["rows"] if row["step"] <= step]
            self.rows = [row for row in past if not row["kept"] or self._path(row["step"]).exists()]
        self.zero = {"step": 0, **self._means(self.base)}

    def look(self, step: int, draw: Callable[..., list[Image.Image]], save: Callable[[Path], object]) -> Any:
        """Score the adapter as it is now, and keep it if it is the best so far; returns the rows of pictures."""
        made = self.ruler.draw(lambda prompts, seeds: draw(prompts, seeds, 1.0))
        self.rows = [row for row in self.rows if row["step"] < step] + [{"step": step, **self._means(made)}]
        picked = self.pick
        if picked is not None and picked["step"] == step:
            save(self._path(step))
        self._write()
        said = ", ".join(f"{name.replace('_', ' ')} {self.rows[-1][name]:.3f}" for name in AXES)
        LOG.info(f"Step {step}: {said}{'; the best so far' if picked is self.rows[-1] else ''}")
        return made.images["subject"]

    def choose(self, pipeline: Any, save: Callable[[Path], object]) -> int | None:
        """Put the pick's numbers into the adapter of `pipeline`, keep the last ones as adapter-last; returns its step.

        To be called when the training is done; None if nothing was looked at.
        """
        pick = self.pick
        if pick is None:
            return None
        save(self.folder / "adapter-last.safetensors")
        load_values(pipeline, self._path(pick["step"]))
        for row in self.rows:
            if row["step"] != pick["step"]:
                self._path(row["step"]).unlink(missing_ok=True)
        self._write()
        pictures = {row["step"]: report.picture_path(self.folder, row["step"]) for row in self.rows}
        sheet = report.pilot_sheet([self.zero, *self.rows], pick["step"], list(AXES), pictures)
        output.write(self.folder / "pilot.png", lambda path: sheet.save(path, "PNG"))
        LOG.info(f"Step {pick['step']} is the best of {len(self.rows)} looks; the last is in adapter-last.safetensors")
        return pick["step"]

    def _means(self, made: Any) -> dict[str, float]:
        scores = self.ruler.score(made, self.base)
        return {name: float(scores.interval(name).mean) for name in scores.values}

    def _path(self, step: int) -> Path:
        return self.folder / "pilot" / f"adapter-{step}.safetensors"

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / "pilot.json").read_text("utf-8"))
            return found if isinstance(found["rows"], list) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write(self) -> None:
        for row in self.rows:
            row["kept"] = self._path(row["step"]).exists()
        pick = self.pick
        said = {"settings": self.settings, "pick": pick and pick["step"], "rows": self.rows}
        text = json.dumps(said, indent=1, ensure_ascii=False)
        output.write(self.folder / "pilot.json", lambda path: path.write_text(text, "utf-8"))


@torch.no_grad()
def load_values(pipeline: Any, path: Path) -> None:
    """Give the adapter of a pipeline, in training, the numbers of a file of the same adapter."""
    file = read_adapter(path)
    sets = adapter_sets(pipeline)
    for component, places in file.tensors.items():
        (name,) = sets[component].infos
        for place, adapter in sets[component].of(name).items():
            adapter.check_tensors(places[place])
            adapter.load_state_dict(places[place])
        sets[component].refresh()
    fill_text(pipeline, name, file.text)
    fill_tokens(pipeline, name, file.tokens)


def _found(name: str) -> str:
    return str(ROOT / name) if not Path(name).exists() and (ROOT / name).is_dir() else name
