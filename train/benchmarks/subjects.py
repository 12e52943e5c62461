"""Folders of a protocol's subjects: pictures to train on, and pictures to compare with."""

from __future__ import annotations

import shutil
from pathlib import Path

from train.output import write
from train.ruler import Subject


def folders(subject: Subject, data_dir: Path | None, work_dir: Path) -> tuple[Path, Path]:
    """(to train on, to compare with), both the same unless the subject has test pictures.

    A held-out subject of pocket's world is drawn below `work_dir`. Raises ValueError or FileNotFoundError.
    """
    if subject.world is not None:
        return (_drawn(subject.world, work_dir / subject.name),) * 2
    if data_dir is None:
        raise ValueError(f"subject {subject.name} needs --data_dir, the folder of the protocol's pictures")
    folder = data_dir / subject.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"--data_dir {data_dir} has no folder {subject.folder!r}, subject {subject.name}")
    return _split(subject, folder, work_dir / subject.name) if subject.captions else (folder, folder)


def _drawn(number: int, folder: Path) -> Path:
    from train.world.subjects import subject_images

    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(subject_images(number)):
        write(folder / f"{i:02d}.png", lambda path, image=image: image.save(path, "PNG"))
    return folder


def _split(subject: Subject, folder: Path, target: Path) -> tuple[Path, Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() != ".txt")
    if len(files) != len(subject.captions):
        captions = len(subject.captions)
        raise ValueError(f"{folder} holds {len(files)} pictures, but {subject.name} has {captions} captions")
    made = []
    for part in ("train", "test"):
        own = target / part
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        for place, number in enumerate(getattr(subject, part)):
            copy = own / f"{place:03d}{files[number].suffix}"
            shutil.copyfile(files[number], copy)
            copy.with_suffix(".txt").write_text(subject.captions[number], "utf-8")
        made.append(own)
    return made[0], made[1]
