"""Checkpoints: folders `checkpoint-<step>` that are whole or absent, whatever ends the program while they are written.

A checkpoint is written beside, in `.part-checkpoint-<step>`: an adapter file that can be used as any other, the state,
and last a manifest with the SHA-256 of each file and the settings of the run. All of it is synced to the disk, then
the folder is renamed. Only after the new one has been read back are old ones deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffusion_adapters.options import Options, option

LOG = logging.getLogger("train")
MANIFEST, ADAPTER = "manifest.json", "adapter.safetensors"
PREFIX, PART = "checkpoint-", ".part-checkpoint-"
SPARE = 2**20
"""Free bytes that a checkpoint asks for besides its own."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Options):
    title: ClassVar[str] = "checkpoints"
    checkpointing_steps: int = option(500, "steps between checkpoints, from which a run can be resumed; 0: none", ge=0)
    checkpoints_total_limit: int | None = option(None, "checkpoints to keep, the newest (default: all)", ge=1)
    resume_from_checkpoint: str | None = option(
        None, "go on where a run was stopped: latest, or a folder checkpoint-STEP"
    )


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints of an output folder by step, in ascending order, good or not."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.is_dir()]
    numbered = {int(path.name.split("-")[1]): path for path in found if path.name.split("-", 1)[1].isdecimal()}
    return dict(sorted(numbered.items()))


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all as they were written. Raises ValueError that says why not."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
        int(manifest["step"]), dict(manifest["settings"])
    except FileNotFoundError:
        raise ValueError(f"{path}: no {MANIFEST}, so it was not written to its end") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged {MANIFEST} ({type(error).__name__})") from None
    for name, expected in files.items():
        try:
            found = _sha256(path / name) if name == Path(name).name else ""
        except OSError as error:
            raise ValueError(f"{path}: {name} cannot be read ({error.strerror})") from None
        if found != expected:
            raise ValueError(f"{path}: {name} is not what was written (its SHA-256 differs)")
    return manifest


def recover(folder: Path) -> None:
    """Finish or remove what a killed run left half done. One process at a time."""
    for part in folder.glob(f"{PART}*"):
        try:
            verify(part)
        except ValueError:
            shutil.rmtree(part, ignore_errors=True)
        else:
            _install(part)


def find(folder: Path, wanted: str | None) -> Path | None:
    """The checkpoint to resume from: `latest` in `folder` (None if there is none), or the path that is given.

    `latest` passes over broken ones and says so. Raises ValueError for a given one that is broken, and for a run that
    would begin among the checkpoints of another.
    """
    present = steps(folder)
    if wanted is None:
        if present:
            newest = next(reversed(present.values()))
            raise ValueError(
                f"--output_dir {folder}: it holds {newest.name} of an earlier run; go on with that run by "
                "--resume_from_checkpoint latest, or remove its checkpoints, or choose another folder"
            )
        return None
    if wanted != "latest":
        path = next((p for p in (Path(wanted), folder / wanted) if p.is_dir()), None)
        if path is None:
            raise FileNotFoundError(f"--resume_from_checkpoint {wanted}: no such folder, nor {folder / wanted}")
        verify(path)
        return path
    for path in reversed(present.values()):
        try:
            verify(path)
        except ValueError as error:
            LOG.warning(f"Not resumed from {error}")
        else:
            return path
    LOG.info(f"--resume_from_checkpoint latest: no checkpoint in {folder}; training starts from the beginning")
    return None


def check_settings(path: Path, now: Mapping[str, Any]) -> None:
    """Raise ValueError, with both values, if the run of a checkpoint had other settings than `now`."""
    saved = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["settings"]
    now = json.loads(json.dumps(now))
    different = [name for name in now if name in saved and saved[name] != now[name]]
    if different:
        name = different[0]
        more = f" (and {', '.join(different[1:])})" if different[1:] else ""
        raise ValueError(
            f"--resume_from_checkpoint {path}: its {name} was {saved[name]!r}, now it is {now[name]!r}{more}; "
            "a run goes on with the settings that it began with, or begins anew in another --output_dir"
        )


def write(
    folder: Path,
    step: int,
    save: Callable[[Path], None],
    *,
    settings: Mapping[str, Any],
    size: int,
    limit: int | None = None,
) -> Path | None:
    """Have `save` fill a folder, make it `checkpoint-<step>`, then delete the oldest beyond `limit`.

    `size`: about how many bytes it takes. None, and a warning, if the disk is full: training goes on, and what was
    there stays.
    """
    part = folder / f"{PART}{step}"
    try:
        free = shutil.disk_usage(folder).free
        if free < size + SPARE:
            raise OSError(f"{(size + SPARE) / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        save(part)
        files = {file.name: {"sha256": _sha256(file), "bytes": file.stat().st_size} for file in sorted(part.iterdir())}
        for name in files:
            _sync(part / name)
        manifest = {"format_version": 1, "step": step, "settings": dict(settings), "files": files}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(part / MANIFEST)
        _sync(part)
        _read_back(part)
        path = _install(part)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = error.strerror or str(error)
        LOG.warning(f"Not written: {folder / f'{PREFIX}{step}'} ({reason}); training goes on, older ones stay")
        return None
    older = [path for number, path in steps(folder).items() if number <= step]
    for old in older[: -limit if limit else 0]:
        (old / MANIFEST).unlink(missing_ok=True)  # first: what is left if this is killed is no checkpoint
        shutil.rmtree(old, ignore_errors=True)
    return path


def _read_back(part: Path) -> None:
    try:
        verify(part)
    except ValueError as error:
        raise OSError(str(error)) from None


def _install(part: Path) -> Path:
    """Give a folder that is whole its name, in place of what has it."""
    path = part.with_name(part.name.removeprefix(".part-"))
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)
    _sync(path.parent)
    return path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
