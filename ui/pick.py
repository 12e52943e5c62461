"""HTML whose buttons can be chosen, by mouse or keyboard: each has `data-pick`, and the event says which it was."""

from __future__ import annotations

import gradio as gr

JS = """element.addEventListener('click', (event) => {
  const one = event.target.closest('[data-pick]');
  if (!one) return;
  element.querySelectorAll('[aria-pressed=true]').forEach((other) => other.setAttribute('aria-pressed', 'false'));
  one.setAttribute('aria-pressed', 'true');
  trigger('click', {pick: one.dataset.pick});
});"""
"""For `js_on_load` of `gr.HTML`."""


def picked(event: gr.EventData) -> str:
    """The `data-pick` of the button that was chosen; empty if the event is none of ours."""
    found = getattr(event, "pick", "")
    return found if isinstance(found, str) else ""
