"""The output folder of a run: checked before anything is loaded, and every file in it whole or absent."""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from diffusion_adapters.file import read_safetensors, write_safetensors

THUMBNAIL = 256
"""Longer side, in pixels, of the picture in a file's header."""
NEEDED = 16 * 2**20
"""Free space that a run asks for besides its adapter: pictures, card, plots."""


def prepare(folder: Path, adapter_bytes: int) -> None:
    """Make the folder and make sure that it can be written. Raises ValueError or OSError before any work is lost."""
    flag = f"--output_dir {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{flag}: it is a file, or lies below one; give the name of a folder") from None
    except OSError as error:
        raise OSError(error.errno, f"{flag}: cannot be written ({error.strerror}); choose another folder") from None
    if free < adapter_bytes + NEEDED:
        needed, left = (adapter_bytes + NEEDED) / 2**20, free / 2**20
        raise ValueError(
            f"{flag}: {needed:.0f} MiB needed, {left:.0f} MiB free; free some space or choose another folder"
        )


def write(path: Path, save: Callable[[Path], object]) -> Path:
    """Have `save` write a temporary file, then rename it to `path`. Raises OSError and leaves what was there."""
    temporary = path.with_name(f".part-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def add_thumbnail(file: Path, image: Image.Image) -> None:
    """Put a small copy of the picture into the header of an adapter's file, where browsers of models look for one."""
    small, data = image.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(data, "JPEG", quality=85)
    tensors, metadata = read_safetensors(file)
    url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    write_safetensors(tensors, {**metadata, "modelspec.thumbnail": url}, file)
