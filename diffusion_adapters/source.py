"""Where an adapter file is: a path, a folder with one, or a repository on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SUFFIX = ".safetensors"
OURS = "adapter.safetensors"
"""What a training here writes, beside a LoRA of the same for other programs."""
PEFT_CONFIG = "adapter_config.json"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def find_file(
    source: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    weight_name: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The adapter file that `source` means, downloaded if it is on the Hub.

    Raises FileNotFoundError if there is none, ValueError if there are several, with their names.
    """
    path = Path(source)
    for name, value in (("subfolder", subfolder), ("weight_name", weight_name)):
        if value is not None and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise ValueError(f"{name} {value!r} must be a path within {source}")
    if path.is_dir():
        folder = path / (subfolder or "")
        names = [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
        return folder / choose(names, weight_name, str(folder))
    if path.exists() or not HUB_ID.fullmatch(str(source)) or path.suffix == SUFFIX:
        return path
    return _from_hub(str(source), revision, subfolder, weight_name, token)


def choose(names: Iterable[str], weight_name: str | None, place: str) -> str:
    """The adapter file among the names of a folder: the one given, else the only one, else our own."""
    names = sorted(names)
    if weight_name is not None:
        if weight_name not in names:
            raise FileNotFoundError(f"no {weight_name} in {place}; it holds {', '.join(names) or 'nothing'}")
        return weight_name
    files = [name for name in names if name.endswith(SUFFIX)]
    if OURS in files or len(files) == 1:
        return OURS if OURS in files else files[0]
    if not files:
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".ckpt"))]
        only = f"; {pickles[0]} is a pickle, which can run code when read" if pickles else ""
        raise FileNotFoundError(f"no {SUFFIX} file in {place}{only}")
    raise ValueError(f"{len(files)} files in {place}: {', '.join(files)}; choose one by weight_name")


def _from_hub(
    repository: str, revision: str | None, subfolder: str | None, weight_name: str | None, token: str | bool | None
) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    place = f"{repository}{f'/{subfolder}' if subfolder else ''} on the Hub"
    front = f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        listed = huggingface_hub.HfApi().list_repo_files(repository, revision=revision, token=token)
        names = [name.removeprefix(front) for name in listed if name.startswith(front)]
        names = [name for name in names if "/" not in name]
        for name in (PEFT_CONFIG,) if PEFT_CONFIG in names else ():
            huggingface_hub.hf_hub_download(repository, front + name, revision=revision, token=token)
        chosen = choose(names, weight_name, place)
        return Path(huggingface_hub.hf_hub_download(repository, front + chosen, revision=revision, token=token))
    except (OfflineModeIsEnabled, ConnectionError):
        return _from_cache(repository, revision, front, weight_name, place)
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(f"{place}: {type(error).__name__}: {reason}") from error


def _from_cache(repository: str, revision: str | None, front: str, weight_name: str | None, place: str) -> Path:
    """The file in the local copy of a repository, while the Hub cannot be asked."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        root = huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"no such file or folder as {repository}, and the Hub cannot be reached") from error
    folder = Path(root) / front
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return folder / choose(names, weight_name, place)
