"""A real browser for the app's tests: Debian's chromium, driven by playwright, that may reach this computer alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlparse

import pytest

GALLERY = Path(__file__).parents[1] / "train" / "benchmarks" / "results" / "gallery"
BINARIES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 60_000
"""Milliseconds for what a busy computer does in one."""
NOISE = ("ResizeObserver loop",)
"""What browsers report that is no fault."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The browser, one for all tests."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        pytest.skip("needs chromium: apt-get install chromium")
    api.expect.set_options(timeout=WAIT)
    with api.sync_playwright() as playwright:
        alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        flags = ["--no-sandbox", "--disable-gpu", "--force-prefers-reduced-motion", alone]
        opened = playwright.chromium.launch(executable_path=binary, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters `red` and `green` of the embedded base. What a test adds it takes away again."""
    folder = tmp_path_factory.mktemp("library")
    for name in ("red", "green"):
        shutil.copy(GALLERY / f"{name}.safetensors", folder)
    return folder


@pytest.fixture
def runs_folder(library_folder: Path) -> Iterator[Path]:
    """The folder of the app's runs; what is new in it goes when the test ends."""
    from tests.trainings import end
    from ui.runs import Runs

    before = set(library_folder.iterdir())
    yield library_folder
    end(Runs(library_folder))
    for path in set(library_folder.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def served(*, library: Path, bases: Sequence[Path | None] = (None,)) -> Iterator[str]:
    """The app, served from this process. None of `bases` is the embedded base."""
    pytest.importorskip("gradio")
    from ui.app import build, open_page
    from ui.bases import Base
    from ui.library import Library
    from ui.studio import Studio

    known = [Base.of(base and str(base)) for base in bases]
    page = build(Studio(known, Library([library], library)))
    _, url, _ = open_page(page, prevent_thread_lock=True)
    yield url
    page.close()


@pytest.fixture(scope="session")
def app_url(library_folder: Path) -> Iterator[str]:
    """The app with the embedded base."""
    with served(library=library_folder) as url:
        yield url


class Held:
    """Drawing as a test wants it: `free` pictures more are made, the next stays at its first step until let go."""

    def __init__(self, free: int) -> None:
        self.free, self.begun, self.let_go, self.stopped = free, Event(), Event(), Event()

    def draw(self, own: Callable[..., Any], base: Any, *given: Any) -> Any:
        """In place of `LoadedBase.draw`, which is `own`."""
        *_, on_step = given
        if self.free:
            self.free -= 1
            return own(base, *given)
        self.begun.set()
        try:
            while not self.let_go.wait(0.05):
                on_step(1, 100)
        except Exception:  # what a stop raises
            self.stopped.set()
            raise
        return own(base, *given)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Held]]:
    """Holds the drawing of the app, which is in this process, from now on: after so many pictures."""
    from ui.bases import LoadedBase

    made, own = [], LoadedBase.draw

    def begin(free: int) -> Held:
        made.append(held := Held(free))
        monkeypatch.setattr(LoadedBase, "draw", lambda base, *given: held.draw(own, base, *given))
        return held

    yield begin
    for held in made:
        held.let_go.set()


class Visitor:
    """Opens pages of the app in `browser`, and keeps what they do wrong."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url
        self.faults: list[str] = []
        self.contexts: list[Any] = []

    def open(self, width: int = 1280, height: int = 900, dark: bool = False, tab: str = "Create") -> Any:
        """In a new session, of a width, height and colour scheme."""
        scheme = "dark" if dark else "light"
        context = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.contexts.append(context)
        context.set_default_timeout(WAIT)
        context.on("request", self._look_at)
        page = context.new_page()
        page.on("pageerror", lambda error: self.faults.append(f"script error: {error}"))
        page.goto(self.url)
        page.get_by_role("tab", name=tab, exact=True).click()
        return page

    def check(self) -> None:
        """Fail for what pages did wrong since the last time."""
        faults, self.faults[:] = self.faults[:], []
        told = [fault for fault in faults if not any(words in fault for words in NOISE)]
        assert not told, told

    def close(self) -> None:
        """Close all pages."""
        for context in self.contexts:
            context.close()

    def _look_at(self, request: Any) -> None:
        if urlparse(request.url).hostname not in ("127.0.0.1", None):
            self.faults.append(f"asked for {request.url}")


@pytest.fixture
def open_page(browser: Any, app_url: str) -> Iterator[Callable[..., Any]]:
    """Opens the app in a new session, as `Visitor.open`. What the page does wrong fails the test."""
    visitor = Visitor(browser, app_url)
    yield visitor.open
    visitor.close()
    visitor.check()


@pytest.fixture(scope="module")
def visitor(browser: Any, app_url: str) -> Iterator[Visitor]:
    """For a page that the tests of a file share: to open one takes longer than most of them."""
    made = Visitor(browser, app_url)
    yield made
    made.close()
