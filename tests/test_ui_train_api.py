"""Trainings of the app by its interface for programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from gradio_client import Client, handle_file

from tests.trainings import SUBJECT
from ui.check import BUSY
from ui.runs import Runs

SETTINGS = {"max_train_steps": 2, "num_validation_images": 0, "rank": 2}


@pytest.fixture(scope="module")
def client(app_url: str) -> Client:
    return Client(app_url, verbose=False, analytics_enabled=False)


@pytest.mark.slow
def test_programs_do_the_same(client: Client, runs_folder: Path) -> None:
    options = client.predict(api_name="/training_options")
    assert not [name for name in client.view_api(return_format="dict")["named_endpoints"] if name[-1].isdigit()]
    assert options["adapter"] == "lora"
    files = [handle_file(path) for path in (*SUBJECT[:2], Path(__file__))]
    found = client.predict("by program", files, SETTINGS, api_name="/check")
    assert (found["pictures"], list(found["refused"]), found["why"], found["steps"]) == (
        2,
        [Path(__file__).name],
        "",
        2,
    )
    assert 0 < found["seconds_per_step"] < 60
    assert [line for line in found["lines"] if line.startswith("Memory: ")]
    assert not (runs_folder / "by-program").exists()
    made = client.predict("by program", files, SETTINGS, api_name="/train")
    assert list(made["refused"]) == [Path(__file__).name]
    assert (made["name"], made["pictures"]) == ("by-program", 2)
    until = time.monotonic() + 120
    while (now := client.predict("by-program", api_name="/run"))["state"] not in ("done", "failed", "killed"):
        assert time.monotonic() < until
        time.sleep(0.5)
    assert (now["state"], [record["step"] for record in now["records"]]) == ("done", [1.0, 2.0])
    assert now["settings"]["rank"] == 2
    assert "by-program" in {entry["name"] for entry in client.predict("", api_name="/adapters")}
    client.predict("by-program", api_name="/delete_run")
    assert not (runs_folder / "by-program").exists()


def test_programs_are_refused_in_words(client: Client, runs_folder: Path) -> None:
    files = [handle_file(SUBJECT[0])]
    for endpoint, arguments, words in (
        ("/train", ("x", files, {"output_dir": "/tmp"}), "cannot be set here"),
        ("/train", ("x", files, {"rank": 0}), "rank must be at least 1"),
        ("/train", ("x", [], {}), "has no pictures"),
        ("/run", ("../x",), "there is no run"),
        ("/stop", ("nobody", False), "there is no run"),
        ("/resume", ("nobody", None), "there is no run"),
    ):
        with pytest.raises(Exception, match=words) as caught:
            client.predict(*arguments, api_name=endpoint)
        assert str(runs_folder) not in str(caught.value)
    assert client.predict(api_name="/runs") == []


def test_a_check_tells_what_would_be_refused(
    client: Client,
    runs_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "no.png").write_bytes(b"nothing")
    pictures = [handle_file(path) for path in (*SUBJECT[:2], tmp_path / "no.png")]

    def ask(name: str, files: list[Any], **settings: Any) -> dict[str, Any]:
        return client.predict(name, files, settings, api_name="/check")

    before = set(runs_folder.iterdir())
    monkeypatch.setattr(Runs, "busy", True)
    found = ask("cat", pictures, max_train_steps=7)
    assert found["refused"] == {"no.png": "not an image that Pillow can read"}
    assert (found["pictures"], found["why"], found["steps"], found["seconds_per_step"]) == (2, "", 7, None)
    assert (found["lines"][0], found["lines"][-1]) == ("2 pictures at 48 x 48 pixels", BUSY)
    for name, files, settings, words, taken in (
        ("cat", pictures[2:], {}, "cat has no pictures", 0),
        ("cat", pictures, {"masked_loss": True}, "has a mask", 2),
        ("cat", pictures, {"rank": 0}, "rank must be at least 1", 0),
        ("cat", pictures, {"output_dir": "/srv"}, "cannot be set here", 0),
        ("red.safetensors", pictures, {"resolution": 7}, "resolution", 0),
    ):
        found = ask(name, files, **settings)
        assert words in found["why"]
        assert str(tmp_path.parent) not in str(found)
        assert (found["pictures"], found["steps"]) == (taken, None)
    (runs_folder / "dog").mkdir()
    assert "already; choose another name" in ask("dog", pictures)["why"]
    (runs_folder / "dog").rmdir()
    assert set(runs_folder.iterdir()) == before
