"""The page: its tabs, its look, and what it may reach."""

from __future__ import annotations

from typing import Any

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from ui.library import Library
from ui.studio import Studio
from ui.tabs import TABS

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace"]
CSS = """
body:not(.dark), body:not(.dark) .gradio-container { --body-text-color-subdued: #52525b;
  --block-info-text-color: #52525b; --block-label-text-color: #3f3f46; --block-title-text-color: #27272a; }
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.studio { display: grid !important; gap: 16px; align-items: start; grid-template-columns: minmax(300px, 2fr) 3fr;
  grid-template-areas: "ask results" "mix results"; grid-template-rows: auto 1fr; }
.studio > .ask { grid-area: ask; }
.studio > .results { grid-area: results; position: sticky; top: 8px; }
.studio > .mix { grid-area: mix; }
.card .html-container, .card .block { background: var(--block-background-fill); }
.card .name label { font-weight: 600; }
.facts { margin: 0; font-size: .85rem; line-height: 1.5; overflow-wrap: anywhere; }
.facts span { display: inline-block; margin-right: 12px; }
.facts i { font-style: normal; color: var(--body-text-color-subdued); }
.pictures, .pictures .grid-wrap, .pictures .grid-container { height: auto !important; min-height: 0 !important; }
.status { min-height: 1.5em; }
@media (max-width: 700px) {
  .gradio-container { padding: 8px !important; }
  .studio { grid-template-columns: minmax(0, 1fr); grid-template-areas: "ask" "results" "mix"; }
  .studio > .results { position: static; }
}
"""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""The browser talks to this server alone."""


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


def build(studio: Studio, library: Library) -> gr.Blocks:
    """The page, ready for `open_page`. The library has been scanned."""
    with gr.Blocks(title="diffusion-adapters", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"## diffusion-adapters\nBase: {studio.title}")
        with gr.Tabs():
            for title, tab in TABS.items():
                with gr.Tab(title):
                    tab(studio, library)
    return page.queue(max_size=100, default_concurrency_limit=1)


def open_page(page: gr.Blocks, **settings: Any) -> Any:
    """Serve the page on this computer unless `settings`, those of `Blocks.launch`, say otherwise."""
    theme = gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", font=FONTS, font_mono=MONO)
    defaults: dict[str, Any] = {
        "server_name": "127.0.0.1", "share": False, "quiet": True, "ssr_mode": False, "mcp_server": False,
        "enable_monitoring": False, "max_file_size": "20mb", "theme": theme, "css": CSS,
        "footer_links": ["api", "settings"], "app_kwargs": {"middleware": [Middleware(Guard)]},
    }  # fmt: skip
    return page.launch(**{**defaults, **settings})
