"""What stands in the controls of the Compare tab: kept by the browser, or taken from a sheet or a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

from ui.common import QUIET, SOON, App, look_into
from ui.controls import START
from ui.grid import Plan, read_either
from ui.plans import BLEND, FIELDS, GRID, NONE, Plans
from ui.recipe import Recipe
from ui.scores import subjects

PICTURE = "This is a picture of Create: its settings and adapters were taken up, the axes stay."


class Refill:
    """Puts into the controls what was set before or elsewhere."""

    def __init__(self, app: App, plans: Plans) -> None:
        self.app, self.plans, self.parts = app, plans, plans.parts
        self.filled = gr.State(False)

    def wire(self, page: gr.Blocks) -> None:
        """Fill the lists when the page is loaded; keep what is set; listen for what is dropped."""
        parts, saved, drop = list(self.parts.values()), self.app.comparing, self.plans.drop
        page.load(self.reload, [saved, *parts], [*parts, self.filled], **SOON)
        gr.on([self.plans.look.click, self.parts["base"].input], self.refresh, parts, parts, **SOON)
        kept = [part.change for part in parts]
        gr.on(kept, self.keep, [self.filled, *parts], saved, trigger_mode="always_last", **QUIET)
        look_into(drop, self.dropped, [drop, *parts], parts)

    def named(self, values: Iterable[Any]) -> dict[str, Any]:
        """Values by the names of their controls."""
        return dict(zip(self.parts, values, strict=True))

    def keep(self, filled: bool, *values: Any) -> Any:
        """What the browser keeps for the next visit."""
        return self.named(values) if filled else gr.skip()

    def reload(self, saved: Any, *values: Any) -> dict[Any, Any]:
        """Everything as the browser kept it; for a new visitor the newest adapter, and its trigger."""
        given = self.named(values)
        try:
            updates = self.fill({name: saved[name] for name in given})
        except (ValueError, TypeError, KeyError, AttributeError):  # nothing yet, or of another version
            updates = self.fill(self.begun({**given, "adapters": None}))
        return {**{self.parts[name]: update for name, update in updates.items()}, self.filled: True}

    def refresh(self, *values: Any) -> dict[Any, Any]:
        """Fill the lists after a look at the library; what was chosen stays if it is there."""
        given = self.named(values)
        updates = self.fill(self.begun(given))
        return {self.parts[name]: update for name, update in updates.items() if update != given[name]}

    def begun(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values with the newest adapter, and its trigger, where none that was chosen fits the base."""
        own = self.app.studio.base(values["base"])
        self.app.library.scan(own)
        usable, chosen = self.app.library.usable(own), values["adapters"]
        if not usable or chosen == [] or any(name in usable for name in chosen or ()):
            return dict(values)
        newest, prompt = self.app.library.newest(own), values["prompt"]
        assert newest is not None
        if prompt in {START, *self.app.library.triggers()}:
            prompt = newest.trigger or prompt
        return {**values, "adapters": [newest.name], "prompt": prompt}

    def fill(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Updates by name that put values into the controls; what is chosen in lists and is not there is left out."""
        studio = self.app.studio
        base = values["base"] if values["base"] in studio.bases else studio.first
        self.app.library.scan(studio.base(base))
        names, known, weight = self.plans.choices(base), [NONE, *subjects(self.app.library)], values["weight"]
        first = values["first"] if values["first"] in names else next(iter(names), None)
        other = next((name for name in names if name != first), None)
        updates = dict(values)
        for axis, controls in self.plans.axes.items():
            own = [f"{axis}_{part}" for part in controls.parts]
            updates |= dict(zip(own, controls.fill([values[name] for name in own], base), strict=True))
        return updates | {
            "base": gr.update(choices=list(studio.bases), value=base),
            "adapters": gr.update(choices=names, value=[name for name in values["adapters"] or () if name in names]),
            "weight": gr.update(value=weight, minimum=min(-1, weight), maximum=max(2, weight)),
            "first": gr.update(choices=names, value=first),
            "second": gr.update(choices=names, value=values["second"] if values["second"] in names else other),
            "subject": gr.update(choices=known, value=values["subject"] if values["subject"] in known else NONE),
        }

    def dropped(self, file: str, *values: Any) -> dict[Any, Any]:
        """A picture was given back: updates that put what it says into the controls."""
        with self.app.toasts():
            found = read_either(file)
            updates = self.show(found, self.named(values))
        gr.Info("The grid's recipe was taken up." if isinstance(found, Plan) else PICTURE)
        return {self.parts[name]: update for name, update in updates.items()}

    def show(self, found: Plan | Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
        """Updates by name, from a sheet's plan or a picture's recipe, over what is `given`; what is lost is told."""
        values = {**given, **(self._of_plan(found) if isinstance(found, Plan) else self._of_recipe(found))}
        request = found.request
        values |= {name: getattr(request, name) for name in FIELDS}
        values["base"] = request.base or self.app.studio.first
        updates = self.fill(values)
        traits = self.app.studio.traits(updates["base"]["value"])
        own = {"sampler": traits.samplers[0], "width": traits.size[0], "height": traits.size[1]}
        lost = {name for name, value in request.changed().items() if value != own.get(name)}
        if lost := lost - {*FIELDS, "base", "num_images"}:
            self.app.warn(f"Compare has no control for {', '.join(sorted(lost))}; the base's own is taken")
        if values["base"] not in self.app.studio.bases:
            self.app.warn(f"it was made with the base {request.base!r}, which is not here")
        for name, update in updates.items():
            if name != "base" and isinstance(update, dict) and "choices" in update:
                there = _listed(update["value"])
                for one in filter(None, _listed(values[name])):
                    if one not in there:
                        self.app.warn(f"there is no {one!r} here for this base")
        return updates

    def _of_plan(self, plan: Plan) -> dict[str, Any]:
        if plan.blend:
            (first, alphas), (second, betas) = ((axis.of, ", ".join(map(str, axis.values))) for axis in plan.axes)
            return {"mode": BLEND, "first": first, "alphas": alphas, "second": second, "betas": betas}
        values: dict[str, Any] = {"mode": GRID, "adapters": list(plan.adapters), "weight": plan.weight}
        for (name, controls), axis in zip(self.plans.axes.items(), (plan.x, plan.y), strict=True):
            values |= {
                f"{name}_{part}": value for part, value in zip(controls.parts, controls.values(axis), strict=True)
            }
        return values

    def _of_recipe(self, recipe: Recipe) -> dict[str, Any]:
        """What stands in the controls for a picture of Create; what there are no controls for is told."""
        if recipe.image is not None:
            self.app.warn("Compare draws from no picture; the source was left out")
        if not recipe.adapters:
            return {"adapters": []}
        (first, dial), *_ = recipe.adapters.items()
        if {other.weight for other in recipe.adapters.values()} != {dial.weight}:
            self.app.warn(f"Compare gives all adapters one weight; {dial.weight:g} was taken, that of {first!r}")
        if lost := {field for other in recipe.adapters.values() for field in other.changed()} - {"weight"}:
            self.app.warn(f"Compare has no control for {', '.join(sorted(lost))} of an adapter")
        return {"adapters": list(recipe.adapters), "weight": dial.weight}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
