"""Model cards of the two encoders, and the lines that the card of the pipeline has about them."""

from __future__ import annotations

import json
from pathlib import Path

from train.world.captions import ATTRIBUTES
from train.world.cards import checksums, fill, plot_run, read_log, set_section, stage_times, sums_table

SOURCES = {"pocket": "pocket's pictures", "real": "real renders", "vae": "renders through the VAE"}


def _write(folder: Path, scores: dict, work: Path, values: dict[str, object]) -> None:
    """scores.json, training.png and README.md of one encoder."""
    stage = folder.name
    rows = read_log(work / "log.jsonl")
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    plot_run(rows, folder / "training.png", {stage: "contrastive loss"})
    weights = folder / "model.safetensors"
    values |= {
        "stages": stage_times(rows, (stage,)),
        "sum": checksums(folder)[weights.name],
        "size": f"{weights.stat().st_size / 1e6:.2f}",
        "parameters": f"{weights.stat().st_size / 2e6:.2f}",
    }
    (folder / "README.md").write_text(fill(Path(__file__).with_name(f"{stage}.md").read_text(), values))


def write_encoder_card(folder: Path, scores: dict, work: Path, families: int) -> None:
    """The identity encoder's card; scores as `identity_scores` gives them."""
    values: dict[str, object] = {"families": f"{families:,}"}
    for source in ("real", "vae"):
        part = scores[source]
        values |= {
            f"{source}_top1": f"{part['top1']:.3f}",
            f"{source}_auc": f"{part['auc']:.3f}",
            f"{source}_other": f"{part['nearest_other']:.2f}",
        }
    lines = []
    for kind in scores["real"]["cosine"]:
        cells = [f"{scores[source]['cosine'][kind]:.2f}" for source in ("real", "vae")]
        for source in ("real", "vae"):
            against = scores[source]["auc_same_against"].get(kind)
            cells.append("" if against is None else f"{against:.3f}")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    _write(folder, scores, work, values | {"cosines": "\n".join(lines)})


def write_clip_card(folder: Path, scores: dict, work: Path, images: int) -> None:
    """The CLIP's card; scores: zero_shot of each source, `subject_places`, `rare_token`, `prompts`."""
    columns = ("pictures", "prompts", *ATTRIBUTES)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for source, title in SOURCES.items():
        for form, name in (("full", "full"), ("bare", "short")):
            cells = [f"{scores[source][form][attribute]:.3f}" for attribute in ATTRIBUTES]
            lines.append(f"| {title} | {name} | " + " | ".join(cells) + " |")
    values = {
        "accuracy": "\n".join(lines),
        "places": f"{scores['subject_places']:.3f}",
        "rare": f"{scores['rare_token']:.3f}",
        "prompts": scores["prompts"],
        "images": f"{images:,}",
    }
    _write(folder, scores, work, values)


def encoders_section(folder: Path) -> str:
    """The section `Encoders` of the pipeline's card: what there is, in one table."""
    lines = [
        "Two stock transformers models read pictures of this world for the ruler (`train/evaluate.py`), given by path",
        "like any DINO or CLIP:",
        "",
        "| folder | model | MB | measured |",
        "|---|---|---|---|",
    ]
    for name, model in (
        ("encoder", "`ResNetModel`, which thing is it?"),
        ("clip", "`CLIPModel`, is it what was asked?"),
    ):
        path = folder / name / "scores.json"
        if not path.exists():
            continue
        scores = json.loads(path.read_text())
        if name == "encoder":
            real, vae = scores["real"], scores["vae"]
            said = f"held-out subjects found among 24: {real['top1']:.2f} of renders, {vae['top1']:.2f} through the VAE"
        else:
            said = ", ".join(f"{attribute} {value:.2f}" for attribute, value in scores["pocket"]["full"].items())
            said += " on pocket's pictures"
        size = (folder / name / "model.safetensors").stat().st_size / 1e6
        lines.append(f"| [`{name}`]({name}/README.md) | {model} | {size:.2f} | {said} |")
    return "\n".join(lines)


def refresh_card(folder: Path) -> None:
    """Bring the sections of the pipeline's card that depend on the encoders up to date; the rest stays."""
    card = folder / "README.md"
    text = set_section(card.read_text(), "Encoders", encoders_section(folder))
    card.write_text(set_section(text, "Checksums", sums_table(folder)))
