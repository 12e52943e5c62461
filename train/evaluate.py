"""Measure what adapters have learned: subject and prompt fidelity, class leak, drift, copies, diversity.

    python train/evaluate.py --instance_data_dir my_cat --subject "sks cat" --class_noun cat \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --adapter my_cat_lora/adapter.safetensors other=old.safetensors:0.7+style.safetensors \\
        --image_encoder facebook/dino-vits16 --text_encoder openai/clip-vit-base-patch32

Each word after --adapter is one row of the result: a file, or a blend FILE:WEIGHT+FILE:WEIGHT, with LABEL= in front if
it is to be called something. The base without adapters is always the first row. With no argument at all it measures the
embedded base on the bundled sample subject. The output folder gets scores.json, scores.md and report.png.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from diffusion_adapters import inspect_adapter, load_adapter, set_adapters
from diffusion_adapters.cli.common import parse_adapter
from diffusion_adapters.options import Options, option
from train import output
from train.bases import BaseOptions, inspect_base, load_base, sample
from train.data import DataOptions, read_folder
from train.ruler import METRICS, Encoder, Pictures, Protocol, Ruler, Scores, Suite, check_metrics, load_protocol
from train.ruler.report import as_markdown, write_report
from train.script import command, read_options

LOG = logging.getLogger("train")
Blend = list[tuple[Path, float]]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    title: ClassVar[str] = "evaluation"
    protocol: str = option("pocket", "name or TOML file of a protocol: prompts, encoders, sampling; flags override it")
    pretrained_model_name_or_path: str | None = option(None, "folder or Hub id of a pipeline (default: the protocol's)")
    adapter: tuple[str, ...] = option((), "rows to measure: [LABEL=]FILE[:WEIGHT][+FILE[:WEIGHT]...]")
    instance_data_dir: Path | None = option(  # noqa: RUF009
        None, "folder of pictures of the subject (default: the bundled sample subject)"
    )
    subject: str = option("sks creature", "what prompts call the subject")
    class_noun: str = option("a creature", "what prompts call its class")
    kind: str | None = option(None, "kind of subject, where the protocol has prompts for several, such as live, object")
    prompts: tuple[str, ...] | None = option(None, "templates with {} for the subject (default: the protocol's)")
    class_prompts: tuple[str, ...] | None = option(None, "templates with {} for the class, for class leak")
    unrelated_prompts: tuple[str, ...] | None = option(None, "prompts without either, for drift")
    metrics: tuple[str, ...] | None = option(None, f"what to measure, of {', '.join(METRICS)} (default: all)")
    image_encoder: str | None = option(None, "folder or Hub id of a vision model of transformers, such as DINO")
    text_encoder: str | None = option(None, "folder or Hub id of a CLIP model, which reads prompts too")
    seeds: int | None = option(None, "pictures of each prompt", ge=1)
    num_inference_steps: int | None = option(None, "denoising steps", ge=1)
    guidance_scale: float | None = option(None, "how strongly pictures follow their prompt", ge=0)
    resolution: int | None = option(None, "side of the pictures in pixels (default: the base's own)", ge=8)
    mixed_precision: str = option("no", "precision of the base", choices=("no", "fp16", "bf16"))
    output_dir: Path = option(Path("evaluation"), "folder for scores.json, scores.md and report.png")  # noqa: RUF009


def rows_of(words: Sequence[str]) -> dict[str, Blend]:
    """Label -> files and weights. Raises ValueError or FileNotFoundError for what cannot be a row."""
    rows: dict[str, Blend] = {}
    for word in words:
        label, equals, rest = word.partition("=")
        if not equals or Path(word).exists():
            label, rest = "", word
        blend = [parse_adapter(part) for part in rest.split("+")]
        for path, _ in blend:
            inspect_adapter(path)  # before minutes of loading
        label = label or "+".join(p.parent.name if p.stem == "adapter" else p.stem for p, _ in blend)
        if label in rows or label == "base":
            raise ValueError(f"--adapter: two rows would be called {label!r}; write LABEL=FILE")
        rows[label] = blend
    return rows


def resolve(config: EvaluateOptions) -> tuple[Protocol, Suite]:
    """The protocol with what the flags override, and the suite for the subject. Raises ValueError."""
    protocol = load_protocol(config.protocol)
    names = ("pretrained_model_name_or_path", "image_encoder", "text_encoder", "seeds", "num_inference_steps")
    names += ("guidance_scale", "resolution", "class_prompts", "unrelated_prompts")
    given: dict[str, Any] = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    kind = config.kind or next(iter(protocol.prompts), "all")
    if config.prompts is not None:
        given["prompts"] = {kind: config.prompts}
    if "image_encoder" in given and "text_encoder" not in given:
        given["text_encoder"] = None  # another encoder than the protocol's: its partner is not meant
    protocol = dataclasses.replace(protocol, **given)
    check_metrics(config.metrics or ())
    return protocol, protocol.suite(config.subject, config.class_noun, kind)


def evaluate(config: EvaluateOptions) -> tuple[dict[str, Scores], list[Path]]:
    """Measure the base and every row; returns the scores by label and the files written."""
    protocol, suite = resolve(config)
    blends = rows_of(config.adapter)
    precision = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.mixed_precision, torch.float32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base_options = BaseOptions(pretrained_model_name_or_path=protocol.pretrained_model_name_or_path)
    info = inspect_base(base_options)
    side = suite.resolution or info.side
    subject = subject_pictures(config.instance_data_dir, side)
    output.prepare(config.output_dir, 0)
    encoders = load_encoders(protocol, device)
    ruler = Ruler(suite, subject, *encoders, metrics=config.metrics)
    base = load_base(info, base_options, device, precision)
    settings = {"steps": suite.num_inference_steps, "guidance_scale": suite.guidance_scale, "side": side}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return sample(base, prompts, seeds, **settings)

    pictures: dict[str, Pictures] = {"base": ruler.draw(draw)}
    rows = {"base": ruler.score(pictures["base"])}
    LOG.info(f"base: {said(rows['base'])}")
    for label, blend in blends.items():
        weights = dict.fromkeys((f"row{len(rows)}_{i}" for i in range(len(blend))), 1.0)
        for name, (path, weight) in zip(weights, blend, strict=True):
            load_adapter(base.pipeline, path, name)
            weights[name] = weight
        set_adapters(base.pipeline, list(weights), weights)
        pictures[label] = ruler.draw(draw)
        rows[label] = ruler.score(pictures[label], pictures["base"])
        set_adapters(base.pipeline, [])
        LOG.info(f"{label}: {said(rows[label])}")
    facts = {"title": f"{config.subject}: {protocol.title}", "real_pictures_fidelity": ruler.ceiling()}
    facts |= {"protocol": config.protocol, "base": protocol.pretrained_model_name_or_path, "seeds": suite.seeds}
    facts |= {"image_encoder": protocol.image_encoder, "text_encoder": protocol.text_encoder, **settings}
    return rows, write_report(config.output_dir, facts, subject, rows, pictures, suite.sets())


def load_encoders(protocol: Protocol, device: torch.device) -> tuple[Encoder, Encoder | None]:
    """The encoders of a protocol; folders are found here or in the clone."""
    found = [name and _in_clone(name) for name in (protocol.image_encoder, protocol.text_encoder)]
    images = Encoder(str(found[0]), device)
    texts = images if found[1] == found[0] else Encoder(found[1], device) if found[1] else None
    return images, texts


def _in_clone(name: str) -> str:
    inside = Path(__file__).parents[1] / name
    return str(inside) if not Path(name).exists() and inside.is_dir() else name


def subject_pictures(folder: Path | None, side: int) -> list[Image.Image]:
    """The middle squares of a folder's pictures. Raises FileNotFoundError or ValueError if there are none."""
    options = DataOptions(instance_data_dir=folder, center_crop=True)
    return [example.images[0] for example in read_folder(options, side, 0).examples]


def said(scores: Scores) -> str:
    """The scores in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {scores.interval(name)}" for name in scores.values)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    rows, files = evaluate(read_options(EvaluateOptions, __doc__, None, argv))
    print(as_markdown(rows))
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    sys.exit(main())
