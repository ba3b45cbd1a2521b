"""The figures of a study: means over seeds with their intervals, over sizes or by setting, as inline SVG.

They keep to the rules of `figures`: horizontal places in percent, text at its size, and every colour also a dash or a
shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from saywhy.report import figures

PALETTE = 6  # colours, dashes and shapes that a plot tells apart
FLOOR = -1  # the place of a floor, which is grey, dotted and hollow wherever it is drawn
WIDE, LINE = 34, 18  # columns of a setting's name, and pixels of a line of it
SHAPES = (
    "M-5.5 0A5.5 5.5 0 1 1 5.5 0A5.5 5.5 0 1 1 -5.5 0Z",
    "M-5 -5H5V5H-5Z",
    "M0 -7L7 0L0 7L-7 0Z",
    "M0 -6.5L6.5 5H-6.5Z",
    "M0 6.5L6.5 -5H-6.5Z",
    "M-6 -2.2H-2.2V-6H2.2V-2.2H6V2.2H2.2V6H-2.2V2.2H-6Z",
)


@dataclass(frozen=True)
class Point:
    """A mean at `x` with its interval and what each seed gave; None where undefined."""

    x: float
    mean: float
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """One system over the settings; `index` is its place in the palette, FLOOR for a floor."""

    name: str
    index: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Block:
    """One setting: its name, and a point for each system as (place in the palette, point, figures in words)."""

    name: str
    rows: tuple[tuple[int, Point, str], ...]


def learning(
    key: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    across: Sequence[tuple[float, str]],
    up: Sequence[float],
    log: bool,
) -> Markup:
    """Means over sizes or weights: a line a system, with a band or whiskers where there are intervals.

    `across` are the marks of the horizontal axis with their names, `up` those of the vertical one. `log` takes the
    logarithm of the first, which must then be above zero.
    """
    turn: Callable[[float], float] = math.log if log else float
    first, last = turn(across[0][0]), turn(across[-1][0])
    height, wide = 280, (last - first) or 1.0

    def place(x: float) -> float:
        return 9.0 + 87.0 * (turn(x) - first) / wide if last > first else 50.0

    def level(y: float) -> float:
        return height - (height - 18) * (min(max(y, up[0]), up[-1]) - up[0]) / (up[-1] - up[0])

    parts = [_columns(across, place, height)]
    for mark in up:
        y = level(mark)
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y))
        parts.append(Markup('<text class="tick" x="0" y="{:.1f}">{}</text>').format(y - 4, _number(mark)))
    body, marks = [], []
    models = [line for line in lines if line.index != FLOOR]
    for line in lines:
        kind = _kind(line.index)
        # Bands over bands hide each other: more than two lines have whiskers, each a little beside the next.
        aside = 1.3 * (models.index(line) - (len(models) - 1) / 2) if line in models and len(models) > 2 else 0.0
        whole = [
            (place(point.x), level(point.low), level(point.high))
            for point in line.points
            if point.low is not None and point.high is not None and line in models
        ]
        if len(whole) > 1 and len(models) <= 2:
            edge = [(x, high) for x, _, high in whole] + [(x, low) for x, low, _ in whole[::-1]]
            way = " ".join(f"{10 * x:.1f},{y:.1f}" for x, y in edge)
            body.append(Markup('<polygon class="band {}" points="{}"/>').format(kind, way))
        else:
            whisker = '<line class="whisker thin {0}" x1="{1:.2f}%" x2="{1:.2f}%" y1="{2:.1f}" y2="{3:.1f}"/>'
            marks += [Markup(whisker).format(kind, x + aside, low, high) for x, low, high in whole]
        way = " ".join(f"{10 * (place(point.x) + aside):.1f},{level(point.mean):.1f}" for point in line.points)
        curve = '<polyline class="curve {}" stroke-dasharray="{}" points="{}" vector-effect="non-scaling-stroke"/>'
        body.append(Markup(curve).format(kind, _dash(line.index), way))
        marks += [_mark(line.index, f"{place(point.x) + aside:.2f}%", level(point.mean)) for point in line.points]
    frame = '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 1000 {0}" preserveAspectRatio="none">{1}</svg>'
    parts.append(Markup(frame).format(height, Markup("").join(body)))
    return figures.drawing(key, title, description, height + 24, [*parts, *marks])


def blocks(key: str, title: str, description: str, rows: Sequence[Block], marks: Sequence[float]) -> Markup:
    """A block for each setting, in it a mean, its interval and each seed as a stroke for every system."""
    low, high = marks[0], marks[-1]

    def place(value: float) -> str:
        return f"{1.5 + 97.0 * min(max((value - low) / (high - low), 0.0), 1.0):.2f}%"

    step, gap = 24, 14
    names = [_lines(block.name) for block in rows]
    bottom = sum(8 + LINE * len(name) + step * len(block.rows) + gap for name, block in zip(names, rows, strict=True))
    parts = []
    for index, mark in enumerate(marks):
        anchor = "start" if index == 0 else "end" if index == len(marks) - 1 else "middle"
        tick = (
            '<line class="grid" x1="{0}" x2="{0}" y1="0" y2="{1}"/>'
            '<text class="tick" x="{0}" y="{2}" text-anchor="{3}">{4}</text>'
        )
        parts.append(Markup(tick).format(place(mark), bottom, bottom + 17, anchor, _number(mark)))
    top = 0
    for name, block in zip(names, rows, strict=True):
        head = 8 + LINE * len(name)
        for number, line in enumerate(name):
            y = top + 17 + LINE * number
            parts.append(Markup('<text class="name" x="0" y="{}">{}</text>').format(y, line))
        for number, (index, point, words) in enumerate(block.rows):
            y = top + head + step * number + 10
            kind = _kind(index)
            group = [Markup("<title>{}</title>").format(words)]
            if point.low is not None and point.high is not None:
                line = '<line class="whisker {}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                group.append(Markup(line).format(kind, place(point.low), place(point.high), y, y))
            for seed in point.seeds:
                stroke = '<line class="seed {}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                group.append(Markup(stroke).format(kind, place(seed), place(seed), y - 9, y + 9))
            group.append(_mark(index, place(point.mean), y))
            parts.append(Markup("<g>{}</g>").format(Markup("").join(group)))
        top += head + step * len(block.rows) + gap
    return figures.drawing(key, title, description, bottom + 24, parts)


def _lines(name: str) -> list[str]:
    """A setting's name on one line, or on two where it is long, as wide as the narrowest figure."""
    if len(name) <= WIDE:
        return [figures.fit(name, WIDE)]
    cut = name.rfind(" ", 0, WIDE + 1)
    cut = cut if cut > WIDE // 3 else WIDE
    return [figures.fit(name[:cut], WIDE), figures.fit(name[cut:], WIDE)]


def line_key(index: int) -> Markup:
    """The stroke and the mark of a system, for a legend."""
    sample = (
        '<svg class="sample" width="38" height="14" aria-hidden="true" focusable="false">'
        '<line class="curve {}" stroke-dasharray="{}" x1="1" x2="37" y1="7" y2="7"/>{}</svg>'
    )
    return Markup(sample).format(_kind(index), _dash(index), _mark(index, "19", 7.0))


def mark_key(index: int) -> Markup:
    """The mark of a system alone, for a legend."""
    sample = '<svg class="sample" width="16" height="14" aria-hidden="true" focusable="false">{}</svg>'
    return Markup(sample).format(_mark(index, "8", 7.0))


def _columns(across: Sequence[tuple[float, str]], place: Callable[[float], float], height: int) -> Markup:
    """The marks of the horizontal axis; a name that would run into the one before it is left out."""
    parts, free = [], -100.0
    for index, (x, name) in enumerate(across):
        at = place(x)
        parts.append(Markup('<line class="grid" x1="{0:.2f}%" x2="{0:.2f}%" y1="18" y2="{1}"/>').format(at, height))
        # Eleven percent of the narrowest figure are some 32 pixels: five figures wide.
        if at - free < 11.0:
            continue
        free = at
        anchor = "start" if index == 0 else "end" if index == len(across) - 1 else "middle"
        text = '<text class="tick" x="{:.2f}%" y="{}" text-anchor="{}">{}</text>'
        parts.append(Markup(text).format(at, height + 17, anchor, figures.fit(name, 12)))
    return Markup("").join(parts)


def _mark(index: int, x: str, y: float) -> Markup:
    shape = SHAPES[1] if index == FLOOR else SHAPES[index % PALETTE]
    mark = '<svg x="{}" y="{:.1f}" width="1" height="1" overflow="visible"><path class="point {}" d="{}"/></svg>'
    return Markup(mark).format(x, y, _kind(index), shape)


def _kind(index: int) -> str:
    return "floor" if index == FLOOR else f"c{index % PALETTE}"


def _dash(index: int) -> str:
    return "1 5" if index == FLOOR else figures.DASHES[index % PALETTE]


def _number(mark: float) -> str:
    return f"{mark:,.10g}".replace("-", "\u2212")
