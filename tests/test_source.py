"""Where a file may lie: a path, a folder, a repository on the Hub. The Hub is played by a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from diffusion_adapters import add_adapter, list_adapters, load_adapter, save_adapter
from diffusion_adapters.source import find_file
from tests.hosts import build

CONFIG = "adapter_config.json"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A repository `owner/pet`; remembers what it was asked for."""

    class Hub:
        root = tmp_path / "remote"
        asked: ClassVar[list[tuple[Any, ...]]] = []

        def list_repo_files(self, repository: str, *, revision: Any = None, token: Any = None) -> list[str]:
            Hub.asked.append(("list", repository, revision, token))
            if repository != "owner/pet":
                response = type("Response", (), {"headers": {}, "status_code": 404, "request": None})()
                raise HfHubHTTPError("404 Client Error.\n\nRepository Not Found", response=response)
            return [str(file.relative_to(Hub.root)) for file in Hub.root.rglob("*") if file.is_file()]

    def download(repository: str, name: str, *, revision: Any = None, token: Any = None) -> str:
        Hub.asked.append(("get", name, revision, token))
        place = tmp_path / "cache" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Hub.root / name, place)
        return str(place)

    Hub.root.mkdir()
    Hub.asked.clear()
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return Hub


def saved(path: Path) -> Path:
    model = build("flux")
    add_adapter(model, "one", rank=1, target_modules=["to_q"])
    return save_adapter(model, "one", path)


def test_the_hub_with_revision_subfolder_name_and_token(hub: Any) -> None:
    saved(hub.root / "v2" / "cat.safetensors")
    saved(hub.root / "v2" / "dog.safetensors")
    saved(hub.root / "other.safetensors")
    (hub.root / "README.md").write_text("a card")
    model = build("flux")
    where = {"revision": "abc", "subfolder": "v2", "token": "secret"}
    assert load_adapter(model, "owner/pet", weight_name="dog.safetensors", **where) == "dog"
    assert hub.asked == [("list", "owner/pet", "abc", "secret"), ("get", "v2/dog.safetensors", "abc", "secret")]
    with pytest.raises(ValueError, match=r"2 files in owner/pet/v2 .*: cat.*, dog.*; choose one by weight_name"):
        load_adapter(model, "owner/pet", **where)
    assert load_adapter(model, "owner/pet") == "other"
    with pytest.raises(FileNotFoundError, match=r"no nix\.safetensors in owner/pet/v2 .*; it holds cat"):
        load_adapter(model, "owner/pet", weight_name="nix.safetensors", **where)
    with pytest.raises(FileNotFoundError, match=r"owner/nix on the Hub: .*Repository Not Found") as caught:
        load_adapter(model, "owner/nix", token="secret")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(list_adapters(model)) == ["dog", "other"]


def test_the_configuration_of_peft_comes_along(hub: Any) -> None:
    saved(hub.root / "adapter_model.safetensors")
    (hub.root / CONFIG).write_text("{}")
    assert find_file("owner/pet").with_name(CONFIG).exists()


def test_without_the_hub_its_local_copy_is_used(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(hub, "list_repo_files", unreachable)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder as owner/pet, and the Hub cannot be reached"):
        load_adapter(build("flux"), "owner/pet")
    saved(tmp_path / "copy" / "cat.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path / "copy"))
    assert load_adapter(build("flux"), "owner/pet") == "cat"


def test_a_folder(tmp_path: Path) -> None:
    model = build("flux")
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file in"):
        load_adapter(model, tmp_path)
    torch.save({}, tmp_path / "old.bin")
    with pytest.raises(FileNotFoundError, match=r"old\.bin is a pickle, which can run code when read"):
        load_adapter(model, tmp_path)
    saved(tmp_path / "cat.safetensors")
    assert load_adapter(model, tmp_path) == "cat"
    saved(tmp_path / "dog.safetensors")
    with pytest.raises(
        ValueError, match=r"2 files in .*: cat\.safetensors, dog\.safetensors; choose one by weight_name"
    ):
        load_adapter(model, tmp_path, "two")
    assert load_adapter(model, tmp_path, weight_name="dog.safetensors") == "dog"
    saved(tmp_path / "adapter.safetensors")  # ours, beside its export
    assert load_adapter(model, tmp_path) == "adapter"
    assert load_adapter(model, tmp_path.parent, "sub", subfolder=tmp_path.name) == "sub"


@pytest.mark.parametrize("option", ["subfolder", "weight_name"])
@pytest.mark.parametrize("value", ["../up", "/etc", "a/../../b"])
def test_nothing_outside_of_the_folder_is_reached(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{option} .* must be a path within"):
        load_adapter(build("flux"), tmp_path, **{option: value})


@pytest.mark.parametrize("source", ["absent.safetensors", "a/b/c", "./a", "owner/pet.safetensors"])
def test_what_is_no_hub_id_is_a_path(source: str, hub: Any) -> None:
    with pytest.raises(FileNotFoundError, match="no adapter file at"):
        load_adapter(build("flux"), source)
    assert hub.asked == []
