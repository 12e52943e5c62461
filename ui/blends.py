"""What a blend of adapters can become: one adapter in the library, a plain LoRA file, or a checkpoint."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_adapters import bake, delete_adapters, export_lora, list_adapters, merge_adapters, save_adapter
from diffusion_adapters.reduce import Loss
from ui.home import Home, safe_name, write
from ui.studio import Studio

BAKED = "baked"
"""The folder in the library's own that holds checkpoints."""


def merge(
    studio: Studio, weights: Mapping[str, float], name: str, method: str, options: Mapping[str, Any], base: str = ""
) -> str:
    """Merge adapters into a new one of the library; a line that says with what error. Raises ValueError."""
    path = studio.library.home.free(name)
    name = path.stem
    with studio.blend(weights, base) as pipe:
        if name in list_adapters(pipe):  # of a file that is gone
            delete_adapters(pipe, name)
        report = merge_adapters(pipe, None, name, method=method, **options)
        try:
            save_adapter(pipe, name, path)
        finally:
            delete_adapters(pipe, name)
    return f"{name}: rank {report.rank}, {_said(report, report.exact)}"


def export(
    studio: Studio, weights: Mapping[str, float], folder: Path, name: str = "", base: str = "", **options: Any
) -> tuple[list[Path], str]:
    """Write adapters as one plain LoRA into `folder`: its files, and a line that says with what error."""
    path = folder / f"{safe_name(name or ' + '.join(weights) or 'blend')}.safetensors"
    with studio.blend(weights, base) as pipe:
        report = export_lora(pipe, None, path, **options)
    said = _said(report, report.exact)
    if report.exact and report.relative_error >= 1e-6:
        said = f"exact but for the rounding of its numbers, relative error {report.relative_error:.3g}"
    line = f"{path.stem}: rank {report.rank}, {said}"
    return sorted(folder.glob("*.safetensors")), line


def bake_in(studio: Studio, weights: Mapping[str, float], name: str, base: str = "") -> str:
    """Write the base with adapters in its weights as a checkpoint in the library's own folder; a line about it."""
    name = safe_name(name)
    with studio.blend(weights, base) as pipe:
        path = bake(pipe, None, studio.library.home.folder / BAKED / name)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{BAKED}/{name} in the library folder, {size / 2**20:.1f} MiB, a pipeline of its own without adapters"


def baked(home: Home) -> list[str]:
    """The names of the checkpoints in the library's own folder, the newest first."""
    places = [path.parent for path in (home.folder / BAKED).glob("[!.]*/model_index.json") if home.holds(path)]
    found = [path for path in places if not path.is_symlink()]
    return [path.name for path in sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))]


def pack(home: Home, name: str) -> Path:
    """A checkpoint as one ZIP beside it, made once, with its files and no links. Raises ValueError, OSError."""
    names = baked(home)
    if name not in names:
        raise ValueError(f"no baked base {name!r} in the library; there are: {', '.join(names) or 'none'}")
    folder = home.folder / BAKED / name
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    target = folder.with_name(f"{name}.zip")

    def fill(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder.parent))

    if not target.exists() or target.stat().st_mtime < max(file.stat().st_mtime for file in files):
        write(target, fill, replace=True)
    return target


def _said(report: Loss, exact: bool) -> str:
    return "exact" if exact else f"{report}; a larger rank or energy lowers it"
