"""What is set on the page: kept by the browser, taken from a picture's recipe, or handed over by another tab."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from ui.cards import Cards, Dials
from ui.common import QUIET, SOON, App, kept, look_into
from ui.controls import START, Controls, sound
from ui.grid import Plan, read_either
from ui.history import History
from ui.library import ERRORS
from ui.recipe import Recipe
from ui.request import Request
from ui.view import View

SHEET = "This is a grid of Compare, which takes it up whole. Create took its first picture:"


class Memory:
    """Puts into the controls what was set before or elsewhere."""

    def __init__(self, app: App, controls: Controls, cards: Cards, view: View, flags: Sequence[Any]) -> None:
        """`flags`: switches of the page that are kept too, the first of them the lock of the seed."""
        self.app, self.studio, self.controls, self.cards, self.view = app, app.studio, controls, cards, view
        self.flags, self.pictures = list(flags), History()
        self.saved = kept("diffusion-adapters")
        self.base = gr.State(app.studio.first)
        """The base whose traits the controls have, where the picker may hold what was typed and is none."""
        self.restored = [
            *controls.fields.values(), controls.image, cards.rack, cards.dials, cards.again, self.base, *flags
        ]  # fmt: skip

    def wire(self, page: gr.Blocks, asked: Sequence[Any], drop: gr.File) -> None:
        """Keep the values of `asked` whenever they change; listen for what is dropped, typed or handed over."""
        cards, fields, again = self.cards, self.controls.fields, self.cards.again
        visitor = self.app.visitor
        page.load(self.reload, [self.saved, visitor, again], [*self.restored, *self.view.parts, visitor], **SOON)
        kept = [part.change for part in (*fields.values(), cards.rack, cards.dials, *self.flags)]
        gr.on(kept, self.keep, [again, *asked], self.saved, trigger_mode="always_last", **QUIET)
        chosen = [fields["base"], self.base, cards.rack, again]  # its `input` tells a choice twice, `blur` once
        fields["base"].blur(self.rebase, chosen, self.restored, **{**SOON, "concurrency_limit": 1})
        look_into(drop, self.dropped, [drop, again], self.restored)
        handed = [*self.restored, self.app.recipe]
        self.app.recipe.change(self.handed, [self.app.recipe, again], handed, **SOON)
        reuse = self.controls.reuse.click
        reuse(self.reuse, [self.view.shots, self.view.chosen], [fields["seed"], self.controls.lock], **QUIET)

    def keep(self, again: int, *asked: Any) -> dict[str, Any]:
        """What the browser keeps for the next visit."""
        if not again:  # what it kept has yet to be put into the controls
            return gr.skip()
        count = len(self.controls.fields)
        _, rack, dials, *flags = asked[count:]
        values = dict(zip(self.controls.fields, asked[:count], strict=True))
        return {"request": values, "rack": rack, "dials": dials, "flags": flags}

    def reload(self, saved: dict[str, Any], visitor: str, again: int) -> dict[Any, Any]:
        """Everything as the browser kept it; for a new visitor the newest adapter."""
        self.app.library.scan(self.studio.base())
        newest = self.app.library.newest(self.studio.base())
        first = Request(
            prompt=(newest and newest.trigger) or START, guidance_scale=self.studio.traits().guidance or 1.0
        )
        rack, dials = ([newest.name], {newest.name: {"on": True}}) if newest else ([], {})
        updates = self.show(first, rack, dials, again)
        try:
            if saved.get("request"):
                updates = self.show(sound(saved["request"]), saved["rack"], saved["dials"], again)
                updates |= dict(zip(self.flags, saved["flags"], strict=True))
        except (ValueError, TypeError, KeyError, AttributeError):  # of another version, or of a base that is gone
            pass
        shots = self.view.show(self.pictures.of(visitor))
        updates |= dict(zip(self.view.parts, shots, strict=True))
        return updates | {self.app.visitor: visitor or secrets.token_urlsafe(16)}

    def show(self, request: Request, rack: Sequence[str], dials: Dials, again: int) -> dict[Any, Any]:
        """Updates that put a request and its adapters into the controls."""
        choices = self.cards.choices(request.base)
        updates = self.controls.show(request)
        base = self.controls.fields["base"]
        updates[base] = {**updates[base], "choices": list(self.studio.bases)}
        rack = [name for name in rack if name in choices]
        return updates | {
            self.cards.rack: gr.update(choices=choices, value=rack),
            self.base: updates[base]["value"],
            self.cards.dials: {str(name): dict(dial) for name, dial in dials.items()},
            self.cards.again: again + 1,
        }

    def take(self, recipe: Recipe, again: int) -> dict[Any, Any]:
        """Updates that put a recipe into the controls; what cannot be had is told."""
        request, usable = recipe.request, set()
        if request.base and request.base not in self.studio.bases:
            self.app.warn(f"it was made with the base {request.base!r}, which is not here")
            request = replace(request, base="", sampler="")
        usable = set(self.cards.choices(request.base))
        base = self.studio.base(request.base)
        for name in recipe.adapters:
            if name not in usable:
                self.app.warn(f"the library has no adapter {name!r} for this base")
            elif recipe.files.get(name) not in (None, self.app.library.find(name, base).digest):
                self.app.warn(f"{name!r} is another file now than when the picture was made")
        dials = {name: {"on": True, **dial.changed()} for name, dial in recipe.adapters.items()}
        updates = self.show(request, list(recipe.adapters), dials, again)
        return updates | {self.controls.image: recipe.image, self.controls.lock: True}

    def dropped(self, file: str, again: int) -> dict[Any, Any]:
        """A PNG was given back; of a sheet its first picture is taken."""
        with self.app.toasts():
            found, said = read_either(file), "The recipe was taken up."
            if isinstance(found, Plan):
                base = self.studio.bases.get(found.request.base) or self.studio.base()
                self.app.library.scan(base)
                cell = found.cell(0, 0, self.app.library, base)
                found, said = Recipe(cell.request, cell.mix), f"{SHEET} {cell.label}."
            updates = self.take(found, again)
        gr.Info(self.app.plain(ValueError(said)))
        return updates

    def handed(self, values: Any, again: int) -> dict[Any, Any]:
        """Another tab gave a recipe."""
        if values is None:
            return {self.cards.again: again}
        with self.app.toasts():
            return self.take(Recipe.from_dict(values), again) | {self.app.recipe: None}  # the same may come again

    def rebase(self, name: str, before: str, rack: Sequence[str], again: int) -> dict[Any, Any]:
        """Another base was chosen or typed. What is none is told, and the one before stays."""
        own = self.controls.fields["base"]
        if name == before:
            return {own: before}
        try:
            base = self.studio.add_base(name)
            updates = self.controls.fit(base.name)
        except ERRORS as error:
            gr.Warning(self.app.plain(error))
            return {own: before}
        choices = self.cards.choices(base.name)
        if away := [name for name in rack if name not in choices]:
            self.app.warn(f"put away, as made for another base: {', '.join(away)}")
        updates[own] = gr.update(choices=list(self.studio.bases), value=base.name)
        return updates | {
            self.base: base.name,
            self.cards.rack: gr.update(choices=choices, value=[name for name in rack if name in choices]),
            self.cards.again: again + 1,
        }

    def reuse(self, shots: list[Any], chosen: int) -> tuple[Any, Any]:
        """The seed of the chosen picture."""
        if not shots:
            return gr.skip(), gr.skip()
        with self.app.toasts():
            return Recipe.read(shots[min(chosen, len(shots) - 1)][1]).request.seed, True
