"""The page: its tabs, its look, and what it may reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from ui.common import QUIET, App
from ui.studio import Studio
from ui.tabs import TABS

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace"]
CSS = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""The browser talks to this server alone."""


NAME = "Blend Studio"
OPEN = "title => title ? {__type__: 'update', selected: title} : {__type__: 'update'}"
"""Opens the tab that was open before the page was loaded anew; in the browser, as a visitor clicks before an answer."""


class Guard:
    """ASGI middleware that puts the policy on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "same-origin"
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)


def build(studio: Studio) -> gr.Blocks:
    """The page, ready for `open_page`."""
    with gr.Blocks(title=f"{NAME} · diffusion-adapters", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        page.queue(max_size=100, default_concurrency_limit=1)  # at once: it reads all that the page has by then
        gr.Markdown(f"## {NAME}")
        app = App(studio, studio.library)
        with gr.Tabs() as app.tabs:
            for title, tab in TABS.items():
                with gr.Tab(title, id=title):
                    tab(app)
        app.tabs.select(title_of, None, app.opened, **QUIET)
        page.load(None, app.opened, app.tabs, js=OPEN, **QUIET)
    return page


def title_of(event: gr.SelectData) -> str:
    """Of the tab that was opened."""
    return str(event.value)


def open_page(page: gr.Blocks, **settings: Any) -> Any:
    """Serve the page on this computer unless `settings`, those of `Blocks.launch`, say otherwise."""
    theme = gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", font=FONTS, font_mono=MONO)
    defaults: dict[str, Any] = {
        "server_name": "127.0.0.1", "share": False, "quiet": True, "ssr_mode": False, "mcp_server": False,
        "enable_monitoring": False, "max_file_size": "20mb", "theme": theme, "css": CSS,
        "footer_links": ["api", "settings"], "app_kwargs": {"middleware": [Middleware(Guard)]},
    }  # fmt: skip
    return page.launch(**{**defaults, **settings})
