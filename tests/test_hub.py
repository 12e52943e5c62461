"""Upload: refused before the training or not lost after it, and no token anywhere, whatever the Hub answers."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from tests.test_dreambooth import arguments, base, one_line, place  # noqa: F401
from train import dreambooth, hub, redact

TOKEN = "hf_s3cretTokenOfTheTest"


class Stub:
    """A Hub of one user. `answers`: method -> what it raises, with the token in its text as some errors have it."""

    def __init__(self, token):
        assert token == TOKEN
        Stub.calls = []

    answers: dict = {}  # noqa: RUF012
    public = False

    def _note(self, method, *args, **kwargs):
        Stub.calls.append((method, args, kwargs))
        if method in Stub.answers:
            raise Stub.answers[method]

    def create_repo(self, name, **kwargs):
        self._note("create_repo", name, **kwargs)
        return SimpleNamespace(repo_id=name if "/" in name else f"someone/{name}")

    def auth_check(self, name, **kwargs):
        self._note("auth_check", name, **kwargs)

    def repo_info(self, name):
        return SimpleNamespace(private=not Stub.public)

    def upload_folder(self, **kwargs):
        found = [path for path in Path(kwargs["folder_path"]).rglob("*") if path.is_file()]
        files = [str(path.relative_to(kwargs["folder_path"])) for path in found]
        Stub.uploaded = set(huggingface_hub.utils.filter_repo_objects(files, ignore_patterns=kwargs["ignore_patterns"]))
        self._note("upload_folder", **kwargs)
        return "done"


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Stub)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(Stub, "answers", {})
    monkeypatch.setattr(Stub, "public", False)
    return monkeypatch


def texts(folder):
    """All that a run wrote, as one string."""
    return "\n".join(str(path) + path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def test_a_run_is_uploaded_and_the_token_is_in_nothing(base, place, capsys, online):  # noqa: F811
    more = ("--push_to_hub", "--hub_token", TOKEN, "--hub_model_id", "team/cat", "--hub_private_repo")
    tracked = ("--report_to", "tensorboard", "--checkpointing_steps", "1")
    assert dreambooth.main(arguments(base, "--adapter", "lora", *more, *tracked)) == 0
    said = capsys.readouterr()
    assert "Uploaded to https://huggingface.co/team/cat" in said.out
    assert [name for name, _, _ in Stub.calls] == ["upload_folder"]  # of the second api; the first asked before
    assert {"adapter.safetensors", "README.md", "image_0.png", "config.toml"} <= Stub.uploaded
    assert not [name for name in Stub.uploaded if name.startswith(("checkpoint", "logs"))]
    assert Path("dreambooth-lora/checkpoint-1").is_dir()
    assert any(place.rglob("events.out.tfevents*"))
    card = Path("dreambooth-lora/README.md").read_text()
    assert 'hf_hub_download("team/cat", "adapter.safetensors")' in card
    assert TOKEN not in said.out + said.err + texts(place)


@pytest.mark.parametrize("method", ["create_repo", "auth_check"])
def test_what_would_refuse_the_upload_refuses_the_run(base, place, capsys, online, method):  # noqa: F811
    online.setattr(dreambooth, "load_base", lambda *_: pytest.fail("the base was loaded"))
    Stub.answers = {method: RuntimeError(f"401 Client Error\n Bearer {TOKEN}")}
    said = one_line(capsys, *arguments(base, "--adapter", "lora", "--push_to_hub", "--hub_token", TOKEN))
    assert said.startswith(
        "--push_to_hub dreambooth-lora: 401 Client Error Bearer (hidden); use a token that may write"
    )
    assert not Path("dreambooth-lora").exists()


def test_an_upload_that_fails_loses_nothing_and_says_how_to_repeat_it(base, place, capsys, online):  # noqa: F811
    Stub.answers = {"upload_folder": ConnectionError(f"gone, token={TOKEN}")}
    online.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    assert dreambooth.main(arguments(base, "--adapter", "lora", "--push_to_hub")) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: the upload failed: gone, token=(hidden). Nothing is lost, all of it is in ")
    assert "again: hf upload someone/dreambooth-lora dreambooth-lora . --exclude 'checkpoint-*/*'" in said.err
    assert Path("dreambooth-lora/adapter.safetensors").is_file()
    assert TOKEN not in said.out + said.err + texts(place)


def test_each_way_to_be_unable_to_upload_is_one_line(base, place, capsys, online):  # noqa: F811
    online.setattr(dreambooth, "load_base", lambda *_: pytest.fail("the base was loaded"))
    run = arguments(base, "--adapter", "lora")
    assert one_line(capsys, *run, "--push_to_hub").startswith("--push_to_hub: no token; run `hf auth login`")
    assert one_line(capsys, *run, "--hub_token", TOKEN).startswith("--hub_token does nothing without --push_to_hub")
    assert one_line(capsys, *run, "--hub_model_id", "a/b").startswith("--hub_model_id does nothing without")
    assert one_line(capsys, *run, "--hub_private_repo").startswith("--hub_private_repo does nothing without")
    Path("token.toml").write_text(f'hub_token = "{TOKEN}"')
    said = one_line(capsys, *run, "--config", "token.toml")
    assert said.startswith("token.toml: hub_token does not belong in a file")
    Stub.public = True
    said = one_line(capsys, *run, "--push_to_hub", "--hub_token", TOKEN, "--hub_private_repo")
    assert "someone/dreambooth-lora exists and is public" in said
    online.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    said = one_line(capsys, *run, "--push_to_hub", "--hub_token", TOKEN)
    assert said.startswith("--push_to_hub: HF_HUB_OFFLINE is set")
    assert one_line(capsys, *run, "--push_to_hub", TOKEN) == (
        "unexpected argument '(hidden)'; every value follows its flag, and --help lists them"
    )


def test_nothing_that_looks_like_a_token_is_logged(capsys):
    from train.progress import show_log

    show_log()
    redact.keep_secret(["open sesame", "", None, "abc"])
    logging.getLogger("train").info("abc open sesame, hf_AbCdEfGhIj and hf_x")
    assert capsys.readouterr().out == "abc (hidden), (hidden) and hf_x\n"
    assert hub.HubOptions(hub_token=TOKEN, push_to_hub=True).as_dict().keys() == {
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
    }
