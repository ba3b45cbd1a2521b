"""One question of a study as figures: its settings over a size, side by side, or in small multiples for two keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from saywhy.report import figures, study_figures, study_story
from saywhy.report.page import cut
from saywhy.report.study_figures import FLOOR, PALETTE, Block, Line, Point
from saywhy.report.study_story import Finding

LINES = PALETTE  # models in one plot
SETTINGS = 12  # settings in one plot that are not on an axis of numbers
PANELS = 6  # small multiples of one part
MARKS = 60  # rows of a plot of settings, beyond which only the headline's pair is drawn
DRAWN_FLOORS = ("floors/linear", "floors/encoder", "floors/zero_shot")
TOP_UP = "reasonings.top_up"
LOG = 8.0  # sizes that lie further apart than by this factor are drawn on a scale of logarithms


@dataclass(frozen=True)
class Panel:
    """One plot of a part, under the value of the second key where there is one."""

    title: str
    figure: Markup


@dataclass(frozen=True)
class Shown:
    """What a part's plots show: its settings with their place in it, what it calls them, and systems by palette."""

    part: Mapping[str, Any]
    settings: Sequence[tuple[int, Mapping[str, Any]]]
    names: Mapping[str, str]
    systems: Sequence[tuple[str, int]]


def systems_of(settings: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The place of every model in the palette, the same in all plots of the page; label_only arms come first."""
    kinds = {key: each["kind"] for one in settings for key, each in one["systems"].items() if each["kind"] != "floor"}
    order = sorted((key for key in kinds if not key.endswith("/explain")), key=lambda key: kinds[key] != "label_only")
    return {key: at % PALETTE for at, key in enumerate(order)}


def part_view(
    at: int,
    part: Mapping[str, Any],
    document: Mapping[str, Any],
    known: Sequence[Finding],
    metric: str,
    system: str | None,
    palette: Mapping[str, int],
) -> dict[str, Any]:
    """What the template shows of the part number `at`."""
    by_id = {one["id"]: one for one in document["settings"]}
    names = {ident: name for (of, ident), name in study_story.setting_names(document).items() if of == part["name"]}
    settings = [(place, by_id[one]) for place, one in enumerate(part["settings"]) if by_id[one]["systems"]]
    called = [(names[one["id"]], one) for _, one in settings]
    stages = [(name, one) for name, one in called if one.get("reasonings")]
    drawn = _drawn([one for _, one in settings], palette, system)
    floors = [key for key in DRAWN_FLOORS if any(key in one["systems"] for _, one in settings)]
    named = [(key, palette[key]) for key in palette if key in drawn] + [(key, FLOOR) for key in floors]
    shown = Shown(part, settings, names, named)
    # What topping up is for stands first: the recall of the rarest class.
    label = rarest([one for _, one in settings]) if TOP_UP in part["axes"] else None
    metrics = [*([f"recall:{label}"] if label is not None else []), metric, "accuracy", document["metric"]]
    metrics += [name for name in ("mae", "qwk") if any(_figure(one, key, name) for _, one in settings for key in drawn)]
    plots = []
    for number, name in enumerate(dict.fromkeys(metrics)):
        panels = list(_panels(f"part-{at}-{number}", shown, name))
        if panels:
            plots.append({"metric": name, "panels": panels[:PANELS], "all": len(panels)})
    varied = _varied([one for _, one in settings])
    curve = _numeric(shown) is not None
    have = {key for _, one in settings for key in one["systems"] if key in palette}
    return {
        "part": part,
        "anchor": f"part-{at}",
        "lines": study_story.part_lines(part, known, metric, system),
        "told": study_story.reasonings_line(stages) if varied else "",
        "plots": plots,
        "curve": curve,
        "legend": [((study_figures.line_key if curve else study_figures.mark_key)(index), key) for key, index in named],
        "left_out": len(have - set(drawn)),
        "settings_left_out": 0 if curve else max(0, len(settings) - SETTINGS),
        "settings": called,
        "findings": [one for one in known if one.part == part["name"] and one.metric == metric],
        "reasonings": stages if varied or len(document["parts"]) == 1 else [],
    }


def rarest(settings: Sequence[Mapping[str, Any]]) -> str | None:
    """The class with the fewest test rows; None where rows bring their own answers."""
    for one in settings:
        for each in one["systems"].values():
            if each.get("per_class"):
                counted: dict[str, int] = {label: told["support"] for label, told in each["per_class"].items()}
                return min(counted, key=lambda label: counted[label])
    return None


def value_of(part: Mapping[str, Any], at: int, setting: Mapping[str, Any], axis: str) -> Any:
    """What the setting number `at` of a part has for a key; a part may know it under other values than another."""
    told = part.get("values") or ()
    values = told[at] if at < len(told) else setting["values"]
    return values.get(axis, study_story.AS_WRITTEN)


def _drawn(settings: Sequence[Mapping[str, Any]], palette: Mapping[str, int], system: str | None) -> list[str]:
    """The models that a part's plots show: all, or the headline's and label_only first where there are too many."""
    have = [key for key in palette if any(key in one["systems"] for one in settings)]
    base = [key for key in have if any(one["systems"].get(key, {}).get("kind") == "label_only" for one in settings)]
    first = [*base[:1], *(key for key in have if key == system)]
    order = [*first, *(key for key in have if key not in first)]
    return order[: max(2, min(LINES, MARKS // max(min(len(settings), SETTINGS), 1)))]


def _panels(key: str, shown: Shown, metric: str) -> Iterator[Panel]:
    """The plots of a part: one, or one for each value of the second key, on the same scale."""
    some = [(at, one) for at, one in shown.settings if any(_figure(one, name, metric) for name, _ in shown.systems)]
    shown = replace(shown, settings=some)
    if not some:
        return
    axis = _numeric(shown)
    if axis is None:
        yield Panel("", _blocks(key, replace(shown, settings=some[:SETTINGS]), metric))
        return
    other = next((one for one in shown.part["axes"] if one != axis), None)
    groups: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for at, one in some:
        value = "" if other is None else study_story.written(value_of(shown.part, at, one, other))
        groups.setdefault(value and cut(f"{(other or '').rpartition('.')[2]}={value}", 80), []).append((at, one))
    up = _marks(shown, metric, 5)
    for number, (title, of_title) in enumerate(groups.items()):
        yield Panel(title, _learning(f"{key}-{number}", title, axis, replace(shown, settings=of_title), metric, up))


def _numeric(shown: Shown) -> str | None:
    """The key whose values are numbers, with the most of them; None where there is none, or more than two keys."""
    if not 1 <= len(shown.part["axes"]) <= 2:
        return None
    counts = {}
    for axis in shown.part["axes"]:
        values = {_place(shown.part, at, one, axis) for at, one in shown.settings}
        if None not in values and len(values) > 1:
            counts[axis] = len(values)
    return max(counts, key=lambda axis: counts[axis], default=None)


def _place(part: Mapping[str, Any], at: int, setting: Mapping[str, Any], axis: str) -> float | None:
    """The number that a setting stands at on a key's axis; `all` rows are as many as there were."""
    value = value_of(part, at, setting, axis)
    if value == "all" and axis == "data.rows":
        return float((setting.get("rows") or {}).get("train") or 0) or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _figure(setting: Mapping[str, Any], key: str, metric: str) -> Mapping[str, Any] | None:
    """A system's figure in a setting, None where it is absent or undefined; `recall:<label>` is one, too."""
    told = setting["systems"].get(key) or {}
    label = metric.removeprefix("recall:")
    found = (told.get("test") or {}).get(metric)
    if label != metric:
        found = ((told.get("per_class") or {}).get(label) or {}).get("recall")
    return found if found and found.get("mean") is not None else None


def _point(found: Mapping[str, Any], x: float, times: float) -> Point:
    low, high = (times * one for one in found["ci95"]) if found.get("ci95") else (None, None)
    seeds = tuple(times * one for one in found.get("by_seed") or () if one is not None)
    return Point(x, times * found["mean"], low, high, seeds if len(seeds) > 1 else ())


def _times(metric: str) -> float:
    return 100.0 if study_story.in_points(metric) else 1.0


def _marks(shown: Shown, metric: str, most: int) -> list[float]:
    """Round numbers over everything that the plots of a part show."""
    times = _times(metric)
    found = [_figure(one, key, metric) for _, one in shown.settings for key, _ in shown.systems]
    points = [_point(one, 0.0, times) for one in found if one is not None]
    values = [one for point in points for one in (point.mean, point.low, point.high, *point.seeds) if one is not None]
    low, high = min(values), max(values)
    return figures.ticks(max(low, 0.0), min(high, 100.0), most) if times > 1 else figures.ticks(low, high, most)


def _learning(key: str, title: str, axis: str, shown: Shown, metric: str, up: Sequence[float]) -> Markup:
    """One metric of every system over the numbers of a key."""
    times, part = _times(metric), shown.part
    places = 1 if times > 1 else 3
    at_x = sorted(
        ((_place(part, at, one, axis) or 0.0, at, one) for at, one in shown.settings), key=lambda one: one[:2]
    )
    names = {x: cut(study_story.written(value_of(part, at, one, axis)), 40) for x, at, one in at_x}
    # Where zero stands beside sizes of several orders no scale shows them all: their places are evenly apart then.
    positive = [x for x in names if x > 0]
    wide = len(positive) > 1 and max(positive) / min(positive) >= LOG
    log, even = wide and len(positive) == len(names), wide and len(positive) < len(names)
    stand = {x: float(order) if even else x for order, x in enumerate(names)}
    lines = []
    for name, index in shown.systems:
        found = [(x, _figure(one, name, metric)) for x, _, one in at_x]
        points = tuple(_point(told, stand[x], times) for x, told in found if told is not None)
        if points:
            lines.append(Line(name, index, points))
    each = [f"{line.name} {', '.join(f'{point.mean:.{places}f}' for point in line.points)}" for line in lines]
    said = f"At {', '.join(names.values())}: {'; '.join(each)}"
    words = f"{_metric(metric)} over {cut(axis, 80)}{f', {title}' if title else ''}"
    across = [(stand[x], name) for x, name in names.items()]
    return study_figures.learning(key, words, said, lines, across, up, log)


def _blocks(key: str, shown: Shown, metric: str) -> Markup:
    """One metric of every system, setting by setting."""
    times = _times(metric)
    places, rows = 1 if times > 1 else 3, []
    for _, one in shown.settings:
        inner = []
        for name, index in shown.systems:
            found = _figure(one, name, metric)
            if found is not None:
                point = _point(found, 0.0, times)
                inside = f" [{point.low:.{places}f}, {point.high:.{places}f}]" if point.low is not None else ""
                inner.append((index, point, f"{name}: {point.mean:.{places}f}{inside}"))
        rows.append(Block(_short(shown, one["id"]), tuple(inner)))
    said = "; ".join(f"{block.name}: " + ", ".join(words for _, _, words in block.rows) for block in rows)
    return study_figures.blocks(key, f"{_metric(metric)} by setting", said, rows, _marks(shown, metric, 6))


def _short(shown: Shown, ident: str) -> str:
    """What a plot calls a setting: the value where there is one key, else keys without their sections."""
    axes, called = shown.part["axes"], shown.names[ident]
    return called.removeprefix(f"{axes[0]}=") if len(axes) == 1 else study_story.short(called)


def _metric(metric: str) -> str:
    name = study_story.metric_name(metric)
    return f"{name[0].upper()}{name[1:]}{', in percent,' if study_story.in_points(metric) else ''}"


def _varied(settings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the settings' reasonings differ, so that stage 1 itself is a question of the part."""
    told = [(one["reasonings"]["kept"], one["reasonings"]["rows"]) for one in settings if one.get("reasonings")]
    shares = [kept / rows for kept, rows in told if kept is not None and rows]
    return len(shares) > 1 and max(shares) - min(shares) > 0.005
