"""A baked base leaves the library as one file, and nothing else does."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline

pytest.importorskip("gradio")

from gradio_client import Client

from diffusion_adapters.cli.common import POCKET
from tests.browser import GALLERY, served
from ui.blends import BAKED, baked, pack
from ui.home import Home

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    shutil.copy(GALLERY / "red.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def client(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with served(library=home) as url:
        yield Client(url, verbose=False, analytics_enabled=False, download_files=str(tmp_path_factory.mktemp("got")))


def test_a_baked_base_is_downloaded_and_loads(client: Client, home: Path, tmp_path: Path) -> None:
    client.predict({"red": 1.0}, "for me", "", api_name="/bake")
    assert client.predict(api_name="/baked") == ["for me"]
    file = client.predict("for me", api_name="/download_baked")
    assert Path(file).name == "for me.zip"
    with zipfile.ZipFile(file) as archive:
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}
        archive.extractall(tmp_path)
    pipe, plain = (DiffusionPipeline.from_pretrained(path) for path in (tmp_path / "for me", POCKET))
    there = DiffusionPipeline.from_pretrained(home / BAKED / "for me")
    for part in PARTS:
        values = getattr(there, part).state_dict()
        assert all((value == values[name]).all() for name, value in getattr(pipe, part).state_dict().items())
    changed = pipe.unet.state_dict()
    assert any((value != changed[name]).any() for name, value in plain.unet.state_dict().items())
    assert [path.name for path in (home / BAKED).iterdir() if path.is_file()] == ["for me.zip"]


@pytest.fixture
def own(tmp_path: Path) -> Home:
    """A library folder with the baked base `a`, and a base that lies outside of it."""
    for folder in (tmp_path / "library" / BAKED / "a", tmp_path / "outside"):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    return Home(tmp_path / "library")


def test_nothing_else_is_packed(client: Client, own: Home, tmp_path: Path) -> None:
    folder, outside = own.folder / BAKED, tmp_path / "outside"
    (folder / "link").symlink_to(outside)
    (folder / "half").mkdir()
    shutil.copytree(folder / "a", folder / ".a.tmp")  # one that is being baked
    (folder / "a" / "secret.json").symlink_to(outside / "model_index.json")
    assert baked(own) == ["a"]
    for name in ("link", "half", "..", "../../outside", str(outside), "", "b"):
        with pytest.raises(ValueError, match=r"no baked base .*there are: a"):
            pack(own, name)
    with zipfile.ZipFile(pack(own, "a")) as archive:
        assert archive.namelist() == ["a/model_index.json"]
    for name in ("../..", "nobody", ""):
        with pytest.raises(Exception, match="baked base") as caught:
            client.predict(name, api_name="/download_baked")
        assert str(tmp_path.parent) not in str(caught.value)


def test_a_base_is_packed_once_and_anew_when_it_is_baked_anew(own: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pack(own, "a")
    first = file.stat().st_ino
    assert pack(own, "a").stat().st_ino == first
    index = own.folder / BAKED / "a" / "model_index.json"
    index.write_text("[]")
    later = file.stat().st_mtime + 5
    os.utime(index, (later, later))

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "write", full)
        with pytest.raises(OSError, match=r"could not write a\.zip: No space left"):
            pack(own, "a")
    assert zipfile.ZipFile(file).read("a/model_index.json") == b"{}"
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == ["a.zip"]
    assert zipfile.ZipFile(pack(own, "a")).read("a/model_index.json") == b"[]"
