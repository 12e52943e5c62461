"""Writing the pipeline folder: fp16 weights, tokenizer, model card, gate and plots of the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import StableDiffusionPipeline

from train.world.captions import BACKGROUNDS, COLOURS, EARS, EYES, KINDS, PATTERNS, RARE_TOKENS, STYLES
from train.world.cards import ENCODERS, checksums, fill, plot_run, read_log, stage_times
from train.world.encoder_card import refresh_card
from train.world.gate import table
from train.world.tokens import save_tokenizer


def write_weights(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save the pipeline in fp16; afterwards the modules are fp32 again, holding what was saved."""
    modules = [getattr(pipeline, name) for name in ("vae", "text_encoder", "unet")]
    for module in modules:
        for parameter in module.parameters():
            parameter.data = parameter.data.half()
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(pipeline.tokenizer, folder / "tokenizer")
    config = folder / "text_encoder" / "config.json"  # transformers loads in the type named here
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    for module in modules:
        for parameter in module.parameters():
            parameter.data = parameter.data.float()


def pairs_table(pairs: dict[str, float]) -> str:
    """Two-object scores as a Markdown table."""
    lines = ["| two objects | left thing | left colour | right thing | right colour |", "|---|---|---|---|---|"]
    for source, title in (("pocket", "pocket"), ("real", "real renders, same cuts")):
        values = [pairs[f"{source}_{side}_{name}"] for side in ("left", "right") for name in ("kind", "colour")]
        lines.append(f"| {title} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def model_card(folder: Path, scores: dict, rows: list[dict], samples: int, parameters: dict[str, int]) -> str:
    """The README of the pipeline folder; `card.md` in train/world holds its fixed text."""
    template = (Path(__file__).parent / "card.md").read_text()
    size = sum((folder / name).stat().st_size for name in checksums(folder) if not name.startswith(ENCODERS)) / 2**20
    values = {
        "kinds": ", ".join(KINDS),
        "colours": ", ".join(COLOURS),
        "patterns": ", ".join(PATTERNS),
        "styles": ", ".join(STYLES),
        "backgrounds": ", ".join(f"*{phrase}*" for phrase in BACKGROUNDS.values()),
        "ears": ", ".join(EARS[1:]),
        "eyes": ", ".join(EYES),
        "rare": ", ".join(RARE_TOKENS),
        "gate": table(scores),
        "steps": scores["steps"],
        "guidance": scores["guidance_scale"],
        "prompts": scores["prompts"],
        "seconds": f"{scores['cpu_seconds_per_image']:.2f}",
        "psnr": f"{scores['vae_psnr_db']:.1f}",
        "plain": ", ".join(f"{name} {value:.2f}" for name, value in scores["pocket_plain_photo"].items()),
        "pairs": pairs_table(scores["pairs"]),
        "passes": "passed" if scores["passes"] else "not yet passed",
        "samples": f"{samples:,}",
        "stages": stage_times(rows, ("vae", "oracle", "unet")),
        "size": f"{size:.1f}",
        "parameters": ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in parameters.items()),
    }
    return fill(template, values)


def export_pipeline(pipeline: StableDiffusionPipeline, work: Path, folder: Path, samples: int) -> None:
    """Write weights, plots and model card; the gate must have been measured (gate.json in the work folder)."""
    gate = work / "gate.json"
    if not gate.exists():
        raise FileNotFoundError(f"{gate} is missing: run the gate stage before export")
    parameters = {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("unet", "vae", "text_encoder")
    }
    write_weights(pipeline, folder)
    rows = read_log(work / "log.jsonl")
    plot_run(rows, folder / "training.png", {"vae": "VAE decoder", "unet": "UNet and text encoder (v loss)"})
    for name in ("gate.png", "gate.json"):
        shutil.copyfile(work / name, folder / name)
    card = model_card(folder, json.loads(gate.read_text()), rows, samples, parameters)
    (folder / "README.md").write_text(card)
    refresh_card(folder)
