"""The figures of the report: inline SVG that takes its colours from the page's style sheet.

Horizontal places are percentages of the window and text keeps its size, so that a figure reads as well at 380 pixels
as on a wide screen; only the confusion matrix has a size of its own. What a colour says, a shape, a dash or a hatch
says too.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

MATRIX_LABELS = 20  # more labels than this: no matrix, the most frequent confusions instead
CURVE_POINTS = 240  # a curve keeps at most this many of its points
DASHES = ("none", "7 4", "2 4", "10 4 2 4", "14 4", "4 2")


@dataclass(frozen=True)
class Dot:
    """A value with its interval; `tone` is base, reasoned or floor, `shape` diamond, circle or square."""

    name: str
    value: float
    low: float
    high: float
    text: str
    tone: str
    shape: str


@dataclass(frozen=True)
class Bar:
    """A bar with its name on the left and its value in words on the right."""

    name: str
    value: float
    text: str
    tone: str = "reasoned"


@dataclass(frozen=True)
class ClassBars:
    """One class: its name, its number of rows and a share from 0 to 1 for each system, None where undefined."""

    label: str
    support: int
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Table:
    """What a table shows, the names of its columns, and its rows: a name and cells, all as they are written."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A drawing under its title, its legend above it, and beneath it what it means and its numbers."""

    title: str
    svg: Markup
    numbers: Table
    legend: tuple[tuple[Markup, str], ...] = ()
    caption: str = ""


def fit(text: str, width: int) -> str:
    """The text on one line, cut with an ellipsis to `width` columns; wide characters count as two."""
    line = " ".join(text.split())
    used = 0
    for place, char in enumerate(line):
        used += 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > width:
            return line[: max(place - 1, 1)].rstrip() + "…"
    return line


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that span `low` to `high`, both ends covered, about `most` of them."""
    if high - low < 1e-6 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]


def dots(
    key: str,
    title: str,
    description: str,
    rows: Sequence[Dot],
    zero: bool = False,
    clip: bool = True,
    marks: Sequence[float] = (),
) -> Markup:
    """Values with their intervals, one below the other, on one axis.

    `zero` draws the line of no difference; `clip` keeps the axis within 0 and 100, as shares in percent need it;
    `marks` are those of the axis where it is to be as long whatever the values are.
    """
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    if zero:
        room = 0.1 * max(abs(low), abs(high), 1.0)
        low, high = min(low, -room), max(high, room)
    marks = marks or ticks(max(low, 0.0) if clip else low, min(high, 100.0) if clip else high, 6)
    place = _scale(marks[0], marks[-1], 1.5, 98.5)
    bottom = 48 * len(rows) + 8
    parts = [_axis(marks, place, bottom, 6)]
    if zero:
        parts.append(Markup('<line class="zero" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(place(0.0), bottom))
    for index, row in enumerate(rows):
        y = 48 * index
        emphasis = "name strong" if row.shape == "diamond" else "name"
        parts.append(Markup('<text class="{}" x="0" y="{}">{}</text>').format(emphasis, y + 15, fit(row.name, 32)))
        parts.append(Markup('<text class="value" x="100%" y="{}">{}</text>').format(y + 15, row.text))
        line = '<line class="interval {}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        parts.append(Markup(line).format(row.tone, place(row.low), place(row.high), y + 32, y + 32))
        parts.append(_shape(row.shape, row.tone, place(row.value), y + 32))
    return drawing(key, title, description, bottom + 24, parts)


def bars(key: str, title: str, description: str, rows: Sequence[Bar]) -> Markup:
    """Amounts as horizontal bars from zero, each with its name above it."""
    most = max((row.value for row in rows), default=0.0) or 1.0
    parts = []
    for index, row in enumerate(rows):
        y = 40 * index
        parts.append(Markup('<text class="name" x="0" y="{}">{}</text>').format(y + 13, fit(row.name, 36)))
        parts.append(Markup('<text class="value" x="100%" y="{}">{}</text>').format(y + 13, row.text))
        parts.append(Markup('<rect class="track" x="0" y="{}" width="100%" height="7" rx="3.5"/>').format(y + 19))
        share = 100 * row.value / most
        if share > 0:
            bar = '<rect class="bar {}" x="0" y="{}" width="{:.2f}%" height="7" rx="3.5"/>'
            parts.append(Markup(bar).format(row.tone, y + 19, max(share, 0.4)))
    return drawing(key, title, description, 40 * max(len(rows), 1), parts)


def class_bars(key: str, title: str, description: str, rows: Sequence[ClassBars], tones: Sequence[str]) -> Markup:
    """A group of bars for each class, one bar a system; the bars of tone base are hatched."""
    thick, place = 11, _scale(0.0, 1.0, 0.0, 88.0)
    step = 24 + (thick + 3) * len(tones) + 10
    bottom = step * len(rows)
    parts = [
        Markup(
            '<defs><pattern id="{0}-hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><rect class="hatch-ground" width="5" height="5"/>'
            '<line class="hatch" x1="0" x2="0" y1="0" y2="5"/></pattern></defs>'
        ).format(key)
    ]
    parts += [_axis([0.0, 0.25, 0.5, 0.75, 1.0], place, bottom, 0, percent=True)]
    for index, row in enumerate(rows):
        y = step * index
        parts.append(Markup('<text class="name" x="0" y="{}">{}</text>').format(y + 15, fit(row.label, 32)))
        parts.append(Markup('<text class="value" x="100%" y="{}">n = {:,}</text>').format(y + 15, row.support))
        for number, (value, tone) in enumerate(zip(row.values, tones, strict=True)):
            top = y + 23 + number * (thick + 3)
            if value is not None:
                fill = Markup(' fill="url(#{}-hatch)"').format(key) if tone == "base" else ""
                bar = '<rect class="bar {}"{} x="0" y="{}" width="{}" height="{}" rx="2"/>'
                parts.append(Markup(bar).format(tone, fill, top, place(value), thick))
            text = "–" if value is None else f"{100 * value:.1f}"
            end = '<text class="small" x="{}" dx="6" y="{}">{}</text>'
            parts.append(Markup(end).format(place(value or 0.0), top + thick - 1, text))
    return drawing(key, title, description, bottom + 22, parts)


def matrix(key: str, title: str, description: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """A confusion matrix: rows are the gold labels, columns the answers, shades the share of the row."""
    size = 64 if len(labels) <= 4 else 58 if len(labels) <= 6 else 44 if len(labels) <= 10 else 36
    names = [fit(label, 18) for label in labels]
    reach = max(_pixels(name) for name in names)
    turned = reach > size - 4
    left, top = max(reach, 30) + 12, (reach * 0.72 + 30 if turned else 42)
    width = left + size * len(labels) + (reach * 0.72 if turned else 2)
    parts = [
        Markup('<text class="axis-name" x="{:.0f}" y="12">answered</text>').format(left),
        Markup('<text class="axis-name end" x="{:.0f}" y="{:.0f}">gold</text>').format(left - 10, top - 8),
    ]
    for column, name in enumerate(names):
        x = left + size * (column + 0.5)
        turn = Markup(' transform="rotate(-45 {:.1f} {:.1f})"').format(x, top - 8) if turned else ""
        anchor = "" if turned else " middle"
        head = '<text class="head{}" x="{:.1f}" y="{:.1f}"{}>{}</text>'
        parts.append(Markup(head).format(anchor, x, top - 8, turn, name))
    for row, name in enumerate(names):
        y, total = top + size * row, sum(counts[row])
        side = '<text class="head end" x="{:.1f}" y="{:.1f}">{}</text>'
        parts.append(Markup(side).format(left - 10, y + size / 2 + 4, name))
        for column, count in enumerate(counts[row]):
            share = count / total if total else 0.0
            shade = 0 if not count else 1 + min(int(share * 6), 5)
            right = " right" if row == column else ""
            cell = (
                '<g><title>{} answered {}: {} of {}</title><rect class="cell q{}{}" x="{:.1f}" y="{:.1f}" width="{}" '
                'height="{}" rx="4"/><text class="count q{}" x="{:.1f}" y="{:.1f}">{}</text></g>'
            )
            x = left + size * column
            words = (fit(labels[row], 80), fit(labels[column], 80), count, total)
            box = (shade, right, x + 1.5, y + 1.5, size - 3, size - 3)
            parts.append(Markup(cell).format(*words, *box, shade, x + size / 2, y + size / 2 + 4, count))
    return drawing(key, title, description, math.ceil(top + size * len(labels) + 4), parts, math.ceil(width))


def curves(
    key: str,
    title: str,
    description: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    across: Sequence[float] = (),
    up: Sequence[float] = (),
    even: bool = False,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    names: Mapping[float, str] | None = None,
) -> Markup:
    """One figure over another, such as loss over steps: a line for each arm, in the order of `line_sample`.

    `across` and `up` are the marks of the axes where those of the points will not do, and `names` what to write below
    those across. `even` draws every point, and the line on which both figures are equal. `bands` has the interval of
    each line as (x, low, high).
    """
    points = [point for line in lines.values() for point in line]
    across = across or ticks(min(x for x, _ in points), max(x for x, _ in points))
    up = up or ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points), 4)
    height, place = 260, _scale(across[0], across[-1], 1.5, 98.5)
    parts = [_axis(across, place, height, height - 5, names=names)]
    if even:
        ends = (place(across[0]), place(across[-1]), _level(across[0], up, height), _level(across[-1], up, height))
        equal = '<line class="zero" stroke-dasharray="3 4" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        parts.append(Markup(equal).format(*ends))
    for mark in up:
        y = _level(mark, up, height)
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y))
        parts.append(Markup('<text class="tick" x="0" y="{:.1f}">{:g}</text>').format(y - 4, mark))

    def way(found: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{10 * float(place(x)[:-1]):.1f},{_level(y, up, height):.1f}" for x, y in found)

    body = []
    for index, (name, line) in enumerate(lines.items()):
        kept = thin(line)
        for x, y in kept if even or len(kept) == 1 else ():
            spot = '<circle class="spot c{}" cx="{}" cy="{:.1f}" r="4"/>'
            parts.append(Markup(spot).format(index % 6, place(x), _level(y, up, height)))
        band = (bands or {}).get(name) or ()
        if band:
            edge = way([*((x, low) for x, low, _ in band), *((x, high) for x, _, high in reversed(band))])
            body.append(Markup('<polygon class="band c{}" points="{}"/>').format(index % 6, edge))
        curve = '<polyline class="curve c{}" stroke-dasharray="{}" points="{}" vector-effect="non-scaling-stroke"/>'
        body.append(Markup(curve).format(index % 6, _dash(index), way(kept)))
    frame = '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 1000 {0}" preserveAspectRatio="none">{1}</svg>'
    parts.append(Markup(frame).format(height, Markup("").join(body)))
    return drawing(key, title, description, height + 24, parts)


def line_sample(index: int) -> Markup:
    """The stroke of the line number `index`, for a legend."""
    sample = (
        '<svg class="sample" width="38" height="10" aria-hidden="true" focusable="false">'
        '<line class="curve c{}" stroke-dasharray="{}" x1="1" x2="37" y1="5" y2="5"/></svg>'
    )
    return Markup(sample).format(index % 6, _dash(index))


def _dash(index: int) -> str:
    """The dashes of a line: where a colour comes again, they are others."""
    return DASHES[(index + index // 6) % 6]


def thin(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The line with at most `CURVE_POINTS` points: means of equal stretches, its first and last point as they are."""
    if len(line) <= CURVE_POINTS:
        return list(line)
    stretches = CURVE_POINTS - 2
    inner = line[1:-1]
    cuts = [round(index * len(inner) / stretches) for index in range(stretches + 1)]
    means = [
        (math.fsum(step for step, _ in inner[a:b]) / (b - a), math.fsum(loss for _, loss in inner[a:b]) / (b - a))
        for a, b in pairwise(cuts)
        if b > a
    ]
    return [line[0], *means, line[-1]]


def _scale(low: float, high: float, left: float, right: float) -> Callable[[float], str]:
    """A function from a value to its horizontal place in percent."""
    return lambda value: f"{left + (right - left) * min(max((value - low) / (high - low), 0.0), 1.0):.2f}%"


def _level(value: float, marks: Sequence[float], height: int) -> float:
    """The vertical place of a value on an axis that grows upwards, with room above for the highest mark's name."""
    return height - (height - 18) * (value - marks[0]) / (marks[-1] - marks[0])


def _axis(
    marks: Sequence[float],
    place: Callable[[float], str],
    bottom: int,
    top: int,
    percent: bool = False,
    names: Mapping[float, str] | None = None,
) -> Markup:
    parts = []
    for index, mark in enumerate(marks):
        anchor = "start" if index == 0 else "end" if index == len(marks) - 1 and not percent else "middle"
        text = f"{100 * mark:.0f}" if percent else f"{mark:,.10g}".replace("-", "\u2212")
        text = names[mark] if names else text
        tick = (
            '<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
            '<text class="tick" x="{0}" y="{3}" text-anchor="{4}">{5}</text>'
        )
        parts.append(Markup(tick).format(place(mark), top, bottom, bottom + 17, anchor, text))
    return Markup("").join(parts)


def _shape(shape: str, tone: str, x: str, y: int) -> Markup:
    ways = {
        "diamond": "M0 -8L8 0L0 8L-8 0Z",
        "circle": "M-6 0A6 6 0 1 1 6 0A6 6 0 1 1 -6 0Z",
        "square": "M-5 -5H5V5H-5Z",
    }
    mark = '<svg x="{}" y="{}" width="1" height="1" overflow="visible"><path class="mark {}" d="{}"/></svg>'
    return Markup(mark).format(x, y, tone, ways[shape])


def _pixels(text: str) -> float:
    """How wide the text is, at most, in the 12 pixels of a matrix's names: no font is at hand to ask."""
    return sum(
        14.0
        if unicodedata.east_asian_width(char) in "WF"
        else 4.7
        if char in "fijlrt.,:;'|! ()[]"
        else 11.9
        if char in "mwMW@%…"
        else 8.8
        if char.isupper()
        else 7.6
        for char in text
    )


def drawing(key: str, title: str, description: str, height: int, parts: Iterable[Markup], width: int = 0) -> Markup:
    """The parts as one image with its name and description; as wide as there is room where no `width` is given."""
    size = Markup('width="{0}" height="{1}" viewBox="0 0 {0} {1}"').format(width, height)
    if not width:
        size = Markup('width="100%" height="{}"').format(height)
    frame = (
        '<svg class="{}" role="img" aria-labelledby="{}-title {}-description" {} xmlns="http://www.w3.org/2000/svg">'
        '<title id="{}-title">{}</title><desc id="{}-description">{}</desc>{}</svg>'
    )
    kind = "sized" if width else "wide"
    return Markup(frame).format(kind, key, key, size, key, title, key, description, Markup("").join(parts))
