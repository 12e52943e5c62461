"""The parts of README.md that are generated: `python -m tests.readme` writes them, a test compares them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import diffusers

from diffusion_adapters import FAMILIES
from tests.denoisers import supported_denoisers_markdown
from train.bases import BASES
from train.bases.flow import FlowBase
from train.benchmarks import inference_report, speed

README = Path(__file__).resolve().parent.parent / "README.md"
RESULTS = README.parent / "train" / "benchmarks" / "results"
SHOWN = "creature-2"
"""The held-out subject whose separation is shown."""


def families_table() -> str:
    """One row a family, out of its docstring."""
    lines = ["| family | alias | what it is | trains per projection |", "|---|---|---|---|"]
    for name in FAMILIES:
        text = sys.modules[FAMILIES[name].__module__].__doc__ or ""
        title = text.strip().splitlines()[0].rstrip(".")
        values = re.search(r"^Trains (.+?) (?:values )?per projection", text, re.MULTILINE | re.DOTALL)
        aliases = ", ".join(f"`{alias}`" for alias in FAMILIES.aliases(name))
        lines.append(f"| `{name}` | {aliases} | {title} | {' '.join(values[1].split()) if values else ''} |")
    return "\n".join(lines)


def bases_table() -> str:
    """One row a file of `train/bases/`, by what its docstring begins with: the pipelines that can be trained."""
    files: dict[str, list[str]] = {}
    for name in BASES:
        files.setdefault(BASES[name].__module__, []).append(name)
    named = {name.lower(): name for name in dir(diffusers)}
    lines = ["| model | pipelines | trained by | file |", "|---|---|---|---|"]
    for module, names in files.items():
        pipelines = ", ".join(f"`{named[alias]}`" for name in names for alias in BASES.aliases(name))
        title = (sys.modules[module].__doc__ or "").split(":")[0]
        kind = "flow matching" if issubclass(BASES[names[0]], FlowBase) else "discrete noise levels"
        lines.append(f"| {title} | {pipelines} | {kind} | `{module.split('.')[-1]}.py` |")
    return "\n".join(lines)


def separation_table() -> str:
    """What the ruler said of one held-out subject."""
    return (RESULTS / "separation" / SHOWN / "scores.md").read_text("utf-8").split("\n\n")[0].strip()


def quality_table() -> str:
    """The comparison of families."""
    return (RESULTS / "quality" / "quality.md").read_text("utf-8").strip()


def regions_table() -> str:
    """Two subjects in one picture, with and without masks."""
    return (RESULTS / "regions" / "regions.md").read_text("utf-8").strip()


def hybrid_table() -> str:
    """Several domains in one picture, over all mixtures, hybrids beside two of the other ways, and what steps cost."""
    return "\n\n".join((RESULTS / "hybrid" / "hybrid.md").read_text("utf-8").split("\n\n")[:3]).strip()


GENERATED = {
    "hybrid": hybrid_table,
    "regions": regions_table,
    "separation": separation_table,
    "quality": quality_table,
    "families": families_table,
    "bases": bases_table,
    "inference": inference_report.REPORT.kept,
    "denoisers": supported_denoisers_markdown,
    "speed": speed.REPORT.kept,
}


def section(text: str, name: str) -> str:
    """What stands between the markers of a generated part."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no markers for {name!r}")
    return found[1].strip()


def main() -> None:
    """Write every generated part into README.md."""
    text = README.read_text(encoding="utf-8")
    for name, make in GENERATED.items():
        section(text, name)
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, rest = text.split(start)
        text = head + start + make() + "\n" + end + rest.split(end)[1]
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
