"""What the probes found in the settings of a study: trust in reasonings, the layers, and what right answers cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from saywhy.report import cost, inside, trust
from saywhy.report.cost import Latency
from saywhy.report.figures import Figure, Table
from saywhy.report.inside import Place
from saywhy.report.page import interval, percent
from saywhy.report.story import System
from saywhy.report.study_story import short
from saywhy.report.trust import Trust

SETTINGS = 12  # settings whose probes are shown in full; the table has all
LINES = 6  # systems in one plot of the layers


@dataclass(frozen=True)
class Probed:
    """The sections on trust with a table of all, the plots of the layers by position, and the latencies by setting.

    `left_out` counts systems that stand in no plot of the layers.
    """

    trusted: tuple[tuple[str, Trust], ...]
    all_trusted: Table | None
    places: tuple[Place, ...]
    left_out: int
    latencies: tuple[tuple[str, Latency], ...]


def probed(settings: Sequence[Mapping[str, Any]]) -> Probed:
    """Everything that the probes of the settings found; settings without probes add nothing."""
    have = [one for one in settings if one.get("probes")]
    faithful = [
        (short(one["name"]), name, told)
        for one in have
        for name, told in (one["probes"].get("faithfulness") or {}).items()
    ]
    sections: list[tuple[str, Trust]] = []
    for at, (setting, name, told) in enumerate(faithful[:SETTINGS]):
        found = trust.sections({f"{setting} · {name}": told}, f"trust-{at}")
        sections += [(setting, replace(one, drawn=_named(one.drawn, one.name))) for one in found]
    looked, left_out = _looked_at(have)
    latencies = []
    for at, one in enumerate(have[:SETTINGS]):
        told = one["probes"].get("latency")
        timed = cost.latency(told, _systems(one), f"latency-{at}") if told else None
        if timed is not None:
            name = short(one["name"])
            table = replace(timed.table, caption=f"{timed.table.caption}: {name}")
            latencies.append((name, replace(timed, drawn=_named(timed.drawn, name), table=table)))
    all_trusted = _table(faithful) if len(faithful) > 1 else None
    return Probed(tuple(sections), all_trusted, tuple(inside.places(looked)), left_out, tuple(latencies))


def _named(drawn: Sequence[Figure], name: str) -> tuple[Figure, ...]:
    """The figures with whose numbers they have in the captions of their tables, which are told apart by them."""
    return tuple(replace(one, numbers=replace(one.numbers, caption=f"{one.numbers.caption}: {name}")) for one in drawn)


def _looked_at(settings: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Mapping[str, Any]], int]:
    """What was seen in the layers by system and setting, at most so many for each position.

    The first setting's systems come first, then those of settings whose reasonings were replaced: they show what the
    layers owe to reasonings.
    """
    every = [
        (one["systems"].get(name, {}).get("replace", "none") != "none", at > 0, short(one["name"]), name, told)
        for at, one in enumerate(settings)
        for name, told in (one["probes"].get("inside") or {}).items()
    ]
    first = [one for one in every if not one[1]]
    replaced = [one for one in every if one[1] and one[0]]
    others = [one for one in every if one[1] and not one[0]]
    found: dict[str, Mapping[str, Any]] = {}
    counts: dict[str, int] = {}
    for _, _, setting, name, told in (*first, *replaced, *others):
        counts[told["position"]] = counts.get(told["position"], 0) + 1
        if counts[told["position"]] <= LINES:
            found[f"{setting} · {name}" if len(settings) > 1 else name] = told
    return found, len(every) - len(found)


def _systems(setting: Mapping[str, Any]) -> dict[str, System]:
    tones = {"label_only": "base", "floor": "floor"}
    found = {}
    for key, each in setting["systems"].items():
        arm, _, mode = key.partition("/")
        found[key] = System(key, arm, mode, tones.get(each["kind"], "reasoned"), None, None, None, False)
    return found


def _table(found: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Table:
    """How the settings stand to each other in what was found about trust."""
    columns = (
        *("setting", "arm / mode", "verdict", "followed another answer’s", "95% interval", "stayed", "95% interval"),
        *("mistake changed", "same without any", "own conclusion is the answer", "rows"),
    )
    rows = []
    for setting, name, told in found:
        other, without = told["swap_other"], told["truncated"][0]["same"] if told["truncated"] else {"share": None}
        rows.append((
            setting, name, trust.VERDICTS[trust.case_of(told)],
            percent(other["followed"]["share"]), interval(other["followed"].get("ci95")),
            percent(other["stayed"]["share"]), interval(other["stayed"].get("ci95")),
            percent(told["mistake"]["changed"]["share"]), percent(without["share"]),
            percent(told["conclusion"]["agrees"]["share"]), f"{told['n']:,}",
        ))  # fmt: skip
    return Table("Trust in the reasonings of every setting, shares of test rows in percent", columns, tuple(rows))
