"""How a grid is shown: as a table on the page that fills while it is drawn, and as one labelled picture to keep."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from ui.entry import data_uri, small_jpeg
from ui.grid import Cell, Plan

THUMB, LONGEST = 256, 8192
"""Pixels of a cell on the page, and of the longest side of a sheet."""
FONTS = ("DejaVuSans.ttf", "Arial.ttf", "LiberationSans-Regular.ttf")
INK, FAINT, PAPER = (24, 24, 27), (228, 228, 231), (255, 255, 255)


@dataclass
class Result:
    """A plan, its cells and what of them is drawn so far."""

    plan: Plan
    cells: Sequence[Cell]
    pictures: dict[int, Image.Image] = field(default_factory=dict)
    scores: dict[int, Mapping[str, float]] = field(default_factory=dict)
    _small: dict[int, str] = field(default_factory=dict)

    def table(self) -> str:
        """The grid as HTML: a header for each column and row, a button for each picture."""
        x, y = self.plan.x, self.plan.y
        corner = html.escape(f"{y.title} ↓ · {x.title} →" if y else f"{x.title} →")
        head = "".join(f"<th scope='col'>{html.escape(x.label(value))}</th>" for value in x.values)
        rows, wide = [], len(x.values)
        for number, value in enumerate(y.values if y else [None]):
            side = f"<th scope='row'>{html.escape(y.label(value))}</th>" if y else "<th scope='row'></th>"
            cells = "".join(self._cell(number * wide + column) for column in range(wide))
            rows.append(f"<tr>{side}{cells}</tr>")
        body = "".join(rows)
        top = f"<caption>{corner}</caption><thead><tr><td></td>{head}</tr></thead>"
        return f"<div class='sheet'><table>{top}<tbody>{body}</tbody></table></div>"

    def _cell(self, index: int) -> str:
        label = html.escape(self.cells[index].label, quote=True)
        picture = self.pictures.get(index)
        if picture is None:
            return f"<td><span class='empty' role='img' aria-label='{label}: not drawn yet'></span></td>"
        if index not in self._small:
            self._small[index] = data_uri(small_jpeg(picture.copy(), THUMB))
        scores = html.escape(told(self.scores.get(index, {})))
        image = f"<img src='{self._small[index]}' alt=''>"
        button = f"<button type='button' data-pick='{index}' aria-pressed='false' aria-label='{label}'>{image}</button>"
        return f"<td>{button}{f'<small>{scores}</small>' if scores else ''}</td>"

    def sheet(self) -> Image.Image:
        """One picture of all, with labels and scores, that carries the plan."""
        x, y = self.plan.x, self.plan.y
        wide, high = len(x.values), len(y.values) if y else 1
        given = next(iter(self.pictures.values()), Image.new("RGB", (256, 256)))
        scale = max(1.0, 192 / given.width)
        room = min(1.0, LONGEST / (given.width * scale * (wide + 1)), LONGEST / (given.height * scale * (high + 1)))
        width, height = int(given.width * scale * room), int(given.height * scale * room)
        size = max(13, width // 16)
        font, gap = _font(size), max(4, size // 2)
        top = _block([x.label(value) for value in x.values], font, width)
        left = _block([y.label(value) for value in y.values], font, width) if y else [""]
        line = int(size * 1.35)
        head = line + gap + line * max(text.count("\n") + 1 for text in top)
        margin = gap + max(int(font.getlength(part)) for text in left for part in text.split("\n")) if y else 0
        below = line * (max((told(s).count("\n") + 1 for s in self.scores.values()), default=0))
        across, down = width + gap, height + below + gap
        made = Image.new("RGB", (margin + gap + wide * across, head + gap + high * down), PAPER)
        pen = ImageDraw.Draw(made)
        title = f"{y.title} ↓  {x.title} →" if y else f"{x.title} →"
        pen.text((gap, gap // 2), title, INK, font)
        for column, text in enumerate(top):
            pen.multiline_text((margin + gap + column * across, line + gap // 2), text, INK, font, spacing=2)
        for row, text in enumerate(left):
            pen.multiline_text((gap, head + gap + row * down), text, INK, font, spacing=2)
        for index, cell in enumerate(self.cells):
            corner = (margin + gap + cell.column * across, head + gap + cell.row * down)
            picture = self.pictures.get(index)
            if picture is None:
                pen.rectangle((*corner, corner[0] + width, corner[1] + height), FAINT)
            else:
                kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
                made.paste(picture.convert("RGB").resize((width, height), kind), corner)
            if index in self.scores:
                at = (corner[0], corner[1] + height + 2)
                pen.multiline_text(at, told(self.scores[index]), INK, font, spacing=2)
        return self.plan.written(made)


def told(scores: Mapping[str, float]) -> str:
    """Scores, one a line."""
    return "\n".join(
        f"{name.replace('_', ' ').removesuffix(' fidelity')} {value:.3f}" for name, value in scores.items()
    )


def _font(size: int) -> ImageFont.FreeTypeFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)  # type: ignore[return-value]


def _block(texts: Sequence[str], font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Each text in at most three lines that fit into a width of pixels."""
    count = max(6, int(width / (font.getlength("n") or 1)))
    return [textwrap.fill(text, count, max_lines=3, placeholder=" …") for text in texts]
