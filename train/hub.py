"""Upload to the Hub: what could refuse it is asked before the training, what fails after it loses nothing."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from diffusion_adapters.options import Options, option
from train.redact import keep_secret, redact

LOG = logging.getLogger("train")
KEPT_HERE = ("checkpoint-*/*", ".*", "*/.*")
"""What is of use only where the training ran, as patterns of the Hub."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HubOptions(Options):
    title: ClassVar[str] = "hub"
    push_to_hub: bool = option(False, "upload the output folder to the Hub when the training is done")
    hub_model_id: str | None = option(
        None, "repository to upload to, NAME or OWNER/NAME (default: the name of the output folder)"
    )
    hub_token: str | None = option(
        None, "token to upload with; safer is `hf auth login` or HF_TOKEN, which are the default", secret=True
    )
    hub_private_repo: bool = option(False, "make the repository private")


def prepare(options: HubOptions, folder: Path) -> str | None:
    """Make the repository; returns its id OWNER/NAME, or None without `--push_to_hub`.

    Raises ValueError for what would refuse the upload: no network, no token, one that is invalid or may not write.
    """
    given = {"hub_model_id": options.hub_model_id, "hub_private_repo": options.hub_private_repo}
    if not options.push_to_hub:
        for name in (name for name, value in given.items() if value):
            raise ValueError(f"--{name} does nothing without --push_to_hub; add that or leave this out")
        return None
    if huggingface_hub.is_offline_mode():
        raise ValueError("--push_to_hub: HF_HUB_OFFLINE is set; unset it, or leave --push_to_hub out and upload later")
    token = _token(options)
    if token is None:
        raise ValueError("--push_to_hub: no token; run `hf auth login`, set HF_TOKEN, or give --hub_token")
    api = huggingface_hub.HfApi(token=token)
    name = options.hub_model_id or folder.resolve().name

    def make() -> str:
        repository = api.create_repo(name, private=options.hub_private_repo or None, exist_ok=True).repo_id
        api.auth_check(repository, write=True)  # a repository that exists is found by a token that may only read, too
        if options.hub_private_repo and not api.repo_info(repository).private:
            raise HFValidationError(f"{repository} exists and is public; choose another --hub_model_id")
        return repository

    remedy = "use a token that may write there (huggingface.co/settings/tokens), or another --hub_model_id"
    made, said = _ask(make)
    if made is None:
        raise ValueError(f"--push_to_hub {name}: {said}; {remedy}")
    LOG.info(f"Will be uploaded to {made}")
    return made


def push(config: Any) -> None:
    """Upload the output folder of a run. Raises RuntimeError with the command that does it later."""
    if not config.push_to_hub:
        return
    api, folder = huggingface_hub.HfApi(token=_token(config)), config.output_dir
    settings: dict[str, Any] = {"repo_id": config.hub_model_id, "folder_path": folder}
    kept = [*KEPT_HERE, f"{config.logging_dir}/*"]
    done, said = _ask(lambda: api.upload_folder(**settings, commit_message="End of training", ignore_patterns=kept))
    if done is None:
        excluded = " ".join(f"--exclude {shlex.quote(pattern)}" for pattern in kept)
        command = f"hf upload {config.hub_model_id} {shlex.quote(str(folder))} . {excluded}"
        raise RuntimeError(f"the upload failed: {said}. Nothing is lost, all of it is in {folder}; again: {command}")
    LOG.info(f"Uploaded to https://huggingface.co/{config.hub_model_id}")


def _token(options: HubOptions) -> str | None:
    token = options.hub_token or huggingface_hub.get_token()
    keep_secret([token])
    return token


def _ask(call: Callable[[], T]) -> tuple[T | None, str]:
    """(result, "") or (None, what went wrong): an exception of the Hub may hold the token, and ends here."""
    try:
        return call(), ""
    except Exception as error:  # whatever the network, a proxy or the Hub does
        return None, redact(" ".join(str(error).split()) or type(error).__name__)
