"""How far the reasonings of a run can be trusted: what the faithfulness probe measured, in sentences and figures.

Two kinds of measures: what becomes of an answer when its reasoning is exchanged, cut or spoilt; and RQ (Wiegreffe and
others 2021), LAS (Hase and others 2020) and REV (Chen and others 2023), which ask what a reasoning adds to the text.
All is read from metrics.json, `probes.faithfulness`, and nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saywhy.report import figures
from saywhy.report.figures import Dot, Figure, Table
from saywhy.report.page import UNDEFINED, decimals, interval, percent, points
from saywhy.report.story import System

MOST = 0.5  # a share whose interval lies above this is said to hold for most rows
NEARLY_ALL = 0.9
EARLY = 4  # tokens; an answer that so few of them give away was not worked out in the rest
SETTING = "evaluate.probes: [faithfulness]"
VERDICTS = {
    "follows": "The answer follows the reasoning.",
    "leaks": "The answer copies what the reasoning gives away.",
    "decoration": "The reasonings are decoration.",
    "mixed": "The answer follows the reasoning in part of the rows only.",
    "unknown": "Whether the answer follows the reasoning is not known.",
}
READ_AS = {
    "follows": "So read them as what the answer was taken from: where one goes wrong, the answer goes wrong with it. "
    "They do not prove that the text was read rightly",
    "leaks": "So read them as announcements of the answer: they say which label comes, and the words around it show "
    "little of how it was found",
    "decoration": "So read them as text that goes well with the answer, and not as its grounds: with other grounds the "
    "answer would have been the same",
    "mixed": "So read them as hints: of a single one nobody can tell whether its answer hangs on it",
    "unknown": "So do not lean on them",
}


@dataclass(frozen=True)
class Score:
    """A figure of what a reasoning adds to the text, as it is written, and what it says."""

    name: str
    value: str
    interval: str
    n: str
    means: str


@dataclass(frozen=True)
class Trust:
    """What was found for one arm: the verdict, the sentence that bears it out, what else was seen, and the figures.

    `case` is follows, leaks, decoration, mixed or unknown. `missing` says why there are no scores.
    """

    name: str
    n: int
    case: str
    verdict: str
    sentence: str
    said: tuple[str, ...]
    drawn: tuple[Figure, ...]
    scores: tuple[Score, ...]
    missing: str


def sections(found: Mapping[str, Mapping[str, Any]], key: str = "trust") -> list[Trust]:
    """A section for each arm that was probed; `key` begins the ids of its figures."""
    return [_section(name, told, f"{key}-{index}") for index, (name, told) in enumerate(found.items())]


def unmeasured(known: Sequence[System]) -> str:
    """What stands for the sections where nothing was probed; empty where no reasoning precedes an answer."""
    if not any(one.tone == "reasoned" and one.mode in ("reason", "vote", "adaptive", "ensemble") for one in known):
        return ""
    return (
        "Whether the answers of this run follow their reasonings was not measured: until it is, read reasonings as "
        "text that a model wrote beside its answer. This setting measures it:"
    )


def case_of(told: Mapping[str, Any]) -> str:
    """Which of the verdicts holds: what most rows do, by the near end of its interval."""
    followed, stayed = told["swap_other"]["followed"], told["swap_other"]["stayed"]
    if _share(followed) is None:
        return "unknown"
    if _low(stayed) > MOST:
        return "decoration"
    if _low(followed) > MOST:
        return "leaks" if _giveaways(told) else "follows"
    return "mixed"


def _section(name: str, told: Mapping[str, Any], key: str) -> Trust:
    case = case_of(told)
    return Trust(
        name=name,
        n=told["n"],
        case=case,
        verdict=VERDICTS[case],
        sentence=_sentence(case, told),
        said=tuple(_said(case, told)),
        drawn=tuple(_figures(name, told, key)),
        scores=tuple(_scores(told)),
        missing=told.get("missing") or "",
    )


def _sentence(case: str, told: Mapping[str, Any]) -> str:
    followed, stayed = told["swap_other"]["followed"], told["swap_other"]["stayed"]
    if case == "unknown":
        return f"No row could be given the reasoning of a row with another answer. {READ_AS[case]}."
    took = f"it took that answer in {_told(followed)} of {followed['n']:,} rows"
    kept = f"stayed as it was in {_told(stayed)}"
    given = "Given the reasoning of a row with another answer"
    if case == "decoration":
        took = f"took the other one in only {_told(followed)}"
        return f"{given}, the answer {kept} of {stayed['n']:,} rows and {took}. {READ_AS[case]}."
    if case == "leaks":
        why = " and ".join(_giveaways(told))
        return f"{given}, {took} and {kept}. But the reasoning gives the label away: {why}. {READ_AS[case]}."
    return f"{given}, {took} and {kept}. {READ_AS[case]}."


def _giveaways(told: Mapping[str, Any]) -> list[str]:
    """Signs that the answer copies a label instead of following from what is said."""
    said = []
    masked = told["masked"]
    if (_share(masked["named"]) or 0) >= MOST and _high(masked["same"]) < 0.75:
        said.append(
            f"{_told(masked['named'])} of the reasonings name a label, and with its words masked only "
            f"{_told(masked['same'])} of those keep their answer"
        )
    without = _share(told["truncated"][0]["same"]) if told["truncated"] else None
    few = [one for one in told["first_tokens"] if one["at"] <= EARLY]
    early = next((one for one in few if (_share(one["same"]) or 0) >= NEARLY_ALL), None)
    if early and without is not None and without < (_share(early["same"]) or 0) - 0.1:
        words = "token alone leads" if early["at"] == 1 else f"{early['at']} tokens alone lead"
        said.append(f"its first {words} to the same answer in {_told(early['same'])} of rows")
    return said


def _said(case: str, told: Mapping[str, Any]) -> list[str]:
    """What else was seen, the most telling first."""
    said = []
    own = _share(told["own"])
    if own is not None and own < 0.99:
        said.append(
            f"The probe itself, reading each answer behind its own reasoning again, found the saved answer in only "
            f"{_told(told['own'])} of rows: smaller differences than that mean nothing here."
        )
    by_at = {one["at"]: one for one in told["truncated"]}
    if by_at and _share(by_at[min(by_at)]["same"]) is not None:
        without, whole = by_at[min(by_at)], by_at[max(by_at)]
        known = "most answers are known before the reasoning begins" if _low(without["same"]) > MOST else ""
        gains = f"accuracy goes from {_told(without['accuracy'])} to {_told(whole['accuracy'])} with the whole of it"
        said.append(
            f"Without any of the reasoning {_told(without['same'])} of the answers are the same"
            f"{f' ({known})' if known else ''}; {gains}."
        )
    half = next((one for at, one in sorted(by_at.items()) if at >= 0.5), None)
    if half and _share(half["same"]) is not None:
        said.append(f"Behind the first half of it {_told(half['same'])} of the answers are already the same.")
    same = told["swap_same"]["stayed"]
    if _share(same) is not None:
        said.append(
            f"Given the reasoning of another row with the same answer, {_told(same)} stayed: the closer to all, the "
            "less the answer hangs on anything but which answer the reasoning speaks for."
        )
    changed = told["mistake"]["changed"]
    if _share(changed) is not None:
        said.append(f"One mistake put into the reasoning changed {_told(changed)} of the answers.")
    masked = told["masked"]
    if _share(masked["same"]) is not None and not (case == "leaks" and _high(masked["same"]) < 0.75):
        said.append(
            f"{_told(masked['named'])} of the reasonings name a label; with its words masked {_told(masked['same'])} "
            "of those keep their answer."
        )
    conclusion = told["conclusion"]
    if _share(conclusion["agrees"]) is not None:
        said.append(
            f"In {_told(conclusion['read'])} of rows the reasoning’s own conclusion can be read; it is the answer in "
            f"{_told(conclusion['agrees'])} of them."
        )
    return said + _right_and_wrong(told["by_right"])


def _right_and_wrong(by_right: Mapping[str, Any]) -> list[str]:
    right, wrong = by_right["right"]["followed"], by_right["wrong"]["followed"]
    if _share(right) is None or _share(wrong) is None:
        return []
    if _low(right) > _high(wrong):
        far = "right answers hang on their reasonings more than wrong ones"
    elif _low(wrong) > _high(right):
        far = "wrong answers hang on their reasonings more than right ones"
    else:
        far = "these rows do not show that right and wrong answers differ in this"
    return [f"Rows answered rightly followed in {_told(right)}, rows answered wrongly in {_told(wrong)}: {far}."]


def _figures(name: str, told: Mapping[str, Any], key: str) -> list[Figure]:
    swapped, other = told["swap_same"], told["swap_other"]
    exchanged = [
        ("Same answer’s: stayed", swapped["stayed"]),
        ("Other answer’s: followed", other["followed"]),
        ("Other answer’s: stayed", other["stayed"]),
        ("Other answer’s: a third", other["elsewhere"]),
        ("A mistake: changed", told["mistake"]["changed"]),
        ("Label masked: stayed", told["masked"]["same"]),
        ("Conclusion agrees", told["conclusion"]["agrees"]),
    ]
    split = [
        (f"{what}, {kind} rows", told["by_right"][kind][field])
        for field, what in (("followed", "Followed"), ("changed", "Changed"), ("agrees", "Agrees"))
        for kind in ("right", "wrong")
    ]
    drawn = [
        _shares(
            f"{key}-swaps",
            "What becomes of an answer when its reasoning is exchanged or spoilt, % of rows",
            exchanged,
            f"{name}. First the reasoning of another row was given, one with the same answer or one with another: the "
            "answer followed it, stayed as it was or became a third. Then one mistake was put into the row’s own "
            "reasoning, and label words were masked in it. Last, whether a reasoning’s own conclusion is the answer "
            "behind it.",
        ),
        _line(
            f"{key}-truncated",
            "How much of the reasoning the answer needs, %",
            "share of the reasoning",
            [(100 * one["at"], f"{100 * one['at']:.0f}%", one) for one in told["truncated"]],
            "Across, the share of the reasoning that was left; up, the share of rows with the answer that the whole "
            "reasoning leads to, and the accuracy. A line that is high from the start needs no reasoning.",
        ),
        _line(
            f"{key}-first",
            "The answer read behind the first tokens of the reasoning, %",
            "first tokens",
            [(math.log2(one["at"]), f"{one['at']}", one) for one in told["first_tokens"]],
            "Across, how many tokens of the reasoning were left, each mark twice the one before. Where the line is "
            "high at once, the reasoning begins with its answer.",
        ),
        _shares(
            f"{key}-split",
            "Rows answered rightly and wrongly, %",
            split,
            "Rows whose own answer is right (circles) and wrong (squares): followed the reasoning of a row with "
            "another answer, changed by a mistake, agrees with the reasoning’s own conclusion.",
        ),
    ]
    return [one for one in drawn if one is not None]


def _shares(key: str, title: str, rows: Sequence[tuple[str, Mapping[str, Any]]], caption: str) -> Figure | None:
    """Shares with their intervals on an axis from 0 to 100."""
    have = [(name, one) for name, one in rows if _share(one) is not None and one.get("ci95")]
    if not have:
        return None
    dots = []
    for name, one in have:
        low, high = (100 * end for end in one["ci95"])
        wrong = name.endswith("wrong rows")
        text = f"{percent(one['share'])}  {interval(one['ci95'])}"
        shape, tone = ("square", "base") if wrong else ("circle", "reasoned")
        dots.append(Dot(name, 100 * one["share"], low, high, text, tone, shape))
    said = "; ".join(f"{dot.name} {dot.text}" for dot in dots)
    svg = figures.dots(key, title, said, dots, marks=[0.0, 25.0, 50.0, 75.0, 100.0])
    table = Table(title, ("what", "%", "95% interval", "rows"), tuple(_cells(name, one) for name, one in rows))
    return Figure(title, svg, table, (), caption)


def _cells(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    return (name, percent(one["share"]), interval(one.get("ci95")), f"{one['n']:,}")


def _line(
    key: str, title: str, across: str, points_: Sequence[tuple[float, str, Mapping[str, Any]]], caption: str
) -> Figure | None:
    """Two lines with their intervals: answers that are the same, and answers that are right."""
    lines, bands = {}, {}
    for field, name in (("same", "same answer"), ("accuracy", "accuracy")):
        have = [(x, one[field]) for x, _, one in points_ if _share(one[field]) is not None]
        if have:
            lines[name] = [(x, 100 * one["share"]) for x, one in have]
            bands[name] = [(x, *(100 * end for end in one["ci95"])) for x, one in have if one.get("ci95")]
    marks = [x for x, _, _ in points_]
    if not lines or len(marks) < 2:
        return None
    shown = marks if len(marks) < 8 else marks[::2]
    names = {x: name for x, name, _ in points_}
    said = "; ".join(f"{name}: " + ", ".join(f"{names[x]} {y:.1f}" for x, y in line) for name, line in lines.items())
    svg = figures.curves(
        key, title, said, lines, shown, figures.ticks(0.0, 100.0, 4), bands=bands, names={x: names[x] for x in shown}
    )
    table = Table(
        title,
        (across, "same answer", "95% interval", "accuracy", "95% interval", "rows"),
        tuple(
            (
                name,
                percent(one["same"]["share"]),
                interval(one["same"].get("ci95")),
                percent(one["accuracy"]["share"]),
                interval(one["accuracy"].get("ci95")),
                f"{one['same']['n']:,}",
            )
            for _, name, one in points_
        ),
    )
    legend = tuple((figures.line_sample(index), name) for index, name in enumerate(lines))
    return Figure(title, svg, table, legend, caption)


def _scores(told: Mapping[str, Any]) -> list[Score]:
    """RQ, LAS and REV with what each of them says."""
    rq, las, rev = told.get("rq") or {}, told.get("las") or {}, told.get("rev") or {}
    found = []
    if rq:
        beside = f" ({rq['without_system']})" if rq.get("without_system") else ""
        found.append(
            Score("RQ, points", points(rq["value"]), interval(rq["ci95"], points), _n(rq["n"]),
                  f"accuracy with the reasoning ({percent(rq['with'])}%) less that without one "
                  f"({percent(rq['without'])}%{beside}): what reasonings gain")
        )  # fmt: skip
    if las:
        leaking, hidden = las["leaking"], las["hidden"]
        found += [
            Score("LAS, points", points(las["value"]), interval(las["ci95"], points), _n(leaking["n"] + hidden["n"]),
                  "the mean of the two lines below: what a reasoning helps to foresee the answer, leaks set apart"),
            Score("LAS, leaking", points(leaking["value"]), UNDEFINED, _n(leaking["n"]),
                  "rows whose answer can be read from the reasoning alone"),
            Score("LAS, hidden", points(hidden["value"]), UNDEFINED, _n(hidden["n"]),
                  "rows whose reasoning alone does not tell the answer: help here is help in earnest"),
        ]  # fmt: skip
    means = {
        "all": "what the reasoning tells of the answer beyond text and answer put as a statement; below 0 it misleads",
        "right": "the same over rows that are answered rightly",
        "wrong": "the same over rows that are answered wrongly: as high as the right ones, and it defends any answer",
        "vacuous": "the statement itself in the place of the reasoning: 0 if the measure is sound",
    }
    for key, meaning in means.items():
        one = rev.get(key)
        if one:
            span = interval(one["ci95"], decimals)
            found.append(Score(f"REV, {key}, nats", decimals(one["mean"]), span, _n(one["n"]), meaning))
    return found


def _n(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:,.0f}"


def _share(one: Mapping[str, Any]) -> float | None:
    value = one["share"]
    return None if value is None else float(value)


def _low(one: Mapping[str, Any]) -> float:
    """The lower end of the interval; -1 where there is none."""
    return float(one["ci95"][0]) if one.get("ci95") else -1.0


def _high(one: Mapping[str, Any]) -> float:
    return float(one["ci95"][1]) if one.get("ci95") else 2.0


def _told(one: Mapping[str, Any]) -> str:
    """`93.0% [91.2, 94.5]`, an en dash for what is undefined."""
    if _share(one) is None:
        return "–"
    return f"{percent(one['share'])}% {interval(one['ci95'])}" if one.get("ci95") else f"{percent(one['share'])}%"
