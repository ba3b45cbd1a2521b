"""What a study says, in sentences: its headline, a line for each of its questions, and what limits its figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from saywhy import controls
from saywhy.report import story
from saywhy.report.page import cut

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mean_recall": "mean recall",
    "mae": "mean absolute error",
    "qwk": "quadratic weighted kappa",
}
LOWER_IS_BETTER = ("mae", "mae_expected", "nll", "brier", "ece", "forced", "tokens_per_row")
AS_WRITTEN = "as written"  # what a part calls a setting that changes none of its keys
SECTIONS = re.compile(r"(?:(?<=^)|(?<=, ))(?:\w+\.)+(?=\w+=)")  # of `a.b.key=value, other=value`
NAME = 120  # characters shown of a setting's name
FEW_SEEDS = 5  # fewer seeds than these are named beside what they are to show
MODES = {
    ("reason_then_label", "reason"): "reasoning first",
    ("reason_then_label", "vote"): "reasoning first, by vote",
    ("label_then_reason", "label"): "learning to explain after the label",
    ("both", "label"): "learning both, asked for the label",
    ("both", "reason"): "learning both, asked to reason",
    ("both", "vote"): "learning both, by vote",
    ("both", "ensemble"): "learning both, as an ensemble",
    ("both", "adaptive"): "learning both, reasoning where unsure",
}


@dataclass(frozen=True)
class Side:
    """One half of a comparison: a system in a setting, `kind` and `replace` as the setting tells them."""

    setting: str
    setting_name: str
    system: str
    kind: str
    replace: str

    @property
    def reasoned(self) -> bool:
        """Whether the system learnt from reasonings, or from what stood in for them."""
        return self.kind not in ("label_only", "floor")

    @property
    def name(self) -> str:
        """What a sentence calls it: what it does, then the key that tables know it by."""
        arm, _, mode = self.system.partition("/")
        if self.kind == "floor":
            return story.FLOOR_NAMES.get(mode, f"the {mode.replace('_', ' ')} floor")
        if self.kind == "label_only":
            return arm
        if self.replace != "none":
            return f"the control {self.replace} ({self.system})"
        words = MODES.get((self.kind, mode))
        return f"{words} ({self.system})" if words else self.system


@dataclass(frozen=True)
class Finding:
    """A row of `comparisons`: a minus b over the same rows and seeds, in the metric's own unit."""

    part: str
    a: Side
    b: Side
    metric: str
    difference: float
    by_seed: tuple[float, ...]
    ci95: tuple[float, float] | None
    seed_ci95: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    p_mcnemar: tuple[float, ...]
    p_mcnemar_holm: tuple[float, ...]
    mde: float | None
    n: int
    seeds: tuple[int, ...]

    @property
    def gain(self) -> float:
        """The difference, turned so that more than zero is better for a."""
        return -self.difference if self.metric in LOWER_IS_BETTER else self.difference

    @property
    def within(self) -> bool:
        """Both sides stand in one setting."""
        return self.a.setting == self.b.setting

    @property
    def case(self) -> str:
        """clear, hint or none.

        Clear is what the interval over rows and seeds bears out, and its p value after Holm's correction. A hint is
        what shows before that correction alone, or in McNemar's test of every seed: these very models differ then, and
        whether others would is open.
        """
        apart = _apart(self.ci95)
        if apart and (self.p_holm is None or self.p_holm < story.SIGNIFICANT):
            return "clear"
        alone = [p for p in (self.p, max(self.p_mcnemar, default=None)) if p is not None]
        return "hint" if apart or any(p < story.SIGNIFICANT for p in alone) else "none"

    def turned(self) -> Finding:
        """The same comparison as b minus a."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            difference=-self.difference,
            by_seed=tuple(-one for one in self.by_seed),
            ci95=_mirrored(self.ci95),
            seed_ci95=_mirrored(self.seed_ci95),
        )


@dataclass(frozen=True)
class Told:
    """The headline: a verdict in few words, the sentence with its figures, and what must be said beside it."""

    case: str
    verdict: str
    sentence: str
    asides: tuple[str, ...]
    finding: Finding | None


def findings(document: Mapping[str, Any]) -> list[Finding]:
    """The comparisons of a study whose difference is defined, in their order."""
    settings = {one["id"]: one for one in document["settings"]}
    names = setting_names(document)
    return [
        Finding(
            row["part"],
            _side(settings, names, row["part"], row["a"]),
            _side(settings, names, row["part"], row["b"]),
            row["metric"],
            row["difference"],
            tuple(row.get("by_seed") or ()),
            _interval(row.get("ci95")),
            _interval(row.get("seed_ci95")),
            row.get("p"),
            row.get("p_holm"),
            tuple(row.get("p_mcnemar") or ()),
            tuple(row.get("p_mcnemar_holm") or ()),
            row.get("mde"),
            row["n"],
            tuple(row.get("seeds") or ()),
        )
        for row in document["comparisons"]
        if row["difference"] is not None
    ]


def setting_names(document: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """What each part calls its settings, by part and setting: a setting may stand in two parts for two values."""
    by_id = {one["id"]: one for one in document["settings"]}
    names = {}
    for part in document["parts"]:
        told = part.get("values") or [by_id[one]["values"] for one in part["settings"]]
        for ident, values in zip(part["settings"], told, strict=False):
            named = [f"{axis}={written(values[axis])}" for axis in part["axes"] if axis in values]
            if document["kind"] == "compare":
                named = [by_id[ident]["name"]]
            elif not part["axes"]:
                named = [written(values[part["name"]])] if part["name"] in values else [by_id[ident]["name"]]
            names[(part["name"], ident)] = cut(", ".join(named), NAME) or AS_WRITTEN
    return names


def short(name: str) -> str:
    """A setting's name, its keys without their sections."""
    return SECTIONS.sub("", cut(name, NAME))


def written(value: Any) -> str:
    """A value of a key as names and plots have it."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def headline(document: Mapping[str, Any], known: Sequence[Finding]) -> Told:
    """The comparison that the study names as its headline, in words."""
    found = _named(document.get("headline"), known)
    if found is None:
        return _without(document)
    found = found.turned() if found.b.reasoned and not found.a.reasoned else found
    case = found.case
    if case == "clear":
        case = "helped" if found.gain > 0 else "hurt"
    verdict = {
        "helped": "A difference was found.",
        "hurt": "A difference was found.",
        "hint": "A hint, but no finding.",
        "none": "No difference is shown.",
    }[case]
    if found.a.reasoned and found.b.kind == "label_only":
        helped = "Saying why helped." if found.a.replace == "none" else "The control helped."
        verdict = {"helped": helped, "hurt": "Label-only wins."}.get(case, verdict)
    asides = [*_where(document, found), *_few(found), *_control(found), *_floors(found, known)]
    return Told(case, verdict, sentence(found), tuple(asides), found)


def sentence(found: Finding) -> str:
    """One comparison in one sentence, with its intervals and, where nothing is shown, what could have been."""
    found = found if found.gain >= 0 else found.turned()
    unit = amount_of(found.metric, found.difference)
    a, b = _sides(found)
    if found.case == "clear":
        verb = "gains" if found.a.reasoned and not found.b.reasoned else "beats"
        said = f"{a} gains {unit} over {b}" if verb == "gains" else f"{a} beats {b} by {unit}"
        return f"{_capital(said)} ({intervals(found)})."
    ahead = f"{a} is ahead of {b} by {unit}" if _visible(found) else f"{a} and {b} come out the same"
    if found.case == "hint":
        return (
            f"{_capital(ahead)} ({intervals(found)}): a sign of a difference, but the interval and the corrected tests "
            "do not all bear it out."
        )
    return f"No difference is shown: {ahead} ({intervals(found)}){smallest(found)}."


def smallest(found: Finding) -> str:
    """What a comparison without a difference could have shown, as the end of its sentence."""
    if found.mde is None:
        return ". That does not show that the two are equal"
    unit = amount_of(found.metric, found.mde)
    return f"; the smallest difference that these rows and seeds could have shown is about {unit}"


def intervals(found: Finding) -> str:
    """The intervals of a difference in words, without brackets."""
    seeds = len(found.seeds)
    over = "over rows alone, one seed" if seeds <= 1 else f"over rows and {seeds} seeds"
    said = [f"95% interval {span(found.metric, found.ci95)} {over}"] if found.ci95 else [f"no interval, {seeds} seeds"]
    if found.seed_ci95:
        said.append(f"seed-level {span(found.metric, found.seed_ci95)}")
    return "; ".join(said)


def part_lines(part: Mapping[str, Any], known: Sequence[Finding], metric: str, system: str | None) -> list[str]:
    """What one question of the study found: against label_only in every setting, and against its first setting.

    `system` is the one that the headline speaks of; without it, or where the part lacks it, the first that is compared.
    """
    mine = [_forward(one) for one in known if one.part == part["name"] and one.metric == metric]
    within = [one for one in mine if one.within and one.b.kind == "label_only" and one.a.reasoned]
    across = [one for one in mine if not one.within and one.a.system == one.b.system and one.a.kind != "floor"]
    of_system = _of_one(within, system)
    said = []
    # Label-only arms with more steps or tokens are other opponents, not other settings.
    for opponent in dict.fromkeys(one.b.name for one in of_system):
        said += _tally([one for one in of_system if one.b.name == opponent], f"{{name}} against {opponent}")
    first = part["settings"][0] if part["settings"] else None
    both = [one for one in across if first in (one.a.setting, one.b.setting)]
    against = [one if one.b.setting == first else one.turned() for one in both]
    chosen = _of_one(against, system)
    if chosen:
        said += _tally(chosen, f"{{name}} against the first setting ({chosen[0].b.setting_name})")
    if not said and mine:
        best = max(mine, key=lambda one: abs(one.gain))
        said = [sentence(best)]
    return said or ["Nothing was compared here."]


def reasonings_line(settings: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Which of the named settings' reasonings were kept most and least often; empty where they hardly differ."""
    shares = [(share, name) for name, one in settings if (share := _kept(one)) is not None]
    if len(shares) < 2 or max(shares)[0] - min(shares)[0] < 0.02:
        return ""
    (least, worst), (most, best) = min(shares), max(shares)
    return (
        f"Of the candidates written, {100 * most:.0f}% were kept with {best} and {100 * least:.0f}% with {worst}; "
        "a kept reasoning passed the checks, which does not make it a good one."
    )


def limits(document: Mapping[str, Any], known: Sequence[Finding]) -> list[str]:
    """What seeds, rows and intervals cover and what they do not."""
    counts = sorted({len(one["seeds"]) for one in document["settings"]})
    rows = sorted({one["rows"]["test"] for one in document["settings"] if one.get("rows") and one["rows"]["test"]})
    said = []
    if counts and counts[-1] <= 1:
        said.append(
            "One seed a setting: the intervals speak of which rows were drawn for the test split. Another seed would "
            "move every figure, by how much was not measured."
        )
    elif counts:
        many = f"{counts[0]} to {counts[-1]}" if counts[0] != counts[-1] else f"{counts[0]}"
        said.append(
            f"{many} seeds a setting. A seed changes what is drawn and how training goes, not the test rows. The 95% "
            "intervals draw rows and seeds anew; seed-level intervals look at the seeds' differences alone, and are "
            "wide where seeds are few."
        )
    if rows:
        many_rows = story.amount(rows[0]) + (f" to {story.amount(rows[-1])}" if rows[0] != rows[-1] else "")
        said.append(
            f"{many_rows} test rows. Nothing here speaks of other data, other labels, another base or another size: "
            "what was not in the grid was not measured."
        )
    if len(known) > 1:
        said.append(
            f"{len(known):,} comparisons were made. p values after Holm’s correction hold for the whole grid together; "
            "intervals and smallest differences each for its own pair, so of twenty intervals one misses."
        )
    shown = [one for one in known if one.case == "none" and one.mde is not None and one.metric == "accuracy"]
    if shown:
        least, most = min(one.mde or 0.0 for one in shown), max(one.mde or 0.0 for one in shown)
        said.append(
            "Where no difference in accuracy is shown, differences below "
            f"{story.points(least)}{'' if story.points(least) == story.points(most) else ' to ' + story.points(most)} "
            "points would have been missed more often than one time in five."
        )
    failed = sum(len(one.get("failed") or ()) for one in document["settings"])
    if failed:
        cells = "1 cell has" if failed == 1 else f"{failed} cells have"
        said.append(f"{cells} failed: means of these settings are over the seeds that are left.")
    said.append(
        "Tokens and seconds are those of the machines that the cells ran on; seconds of cells that ran side by side "
        "are longer than alone."
    )
    return said + list(document.get("notes") or [])


def amount_of(metric: str, value: float) -> str:
    """The size of a difference with its unit, without a sign."""
    if metric in ("mae", "mae_expected"):
        return f"{abs(value):.3f} of {METRIC_NAMES.get(metric, metric)}"
    if metric == "qwk":
        return f"{abs(value):.3f} of quadratic weighted kappa"
    return f"{story.points(abs(value))} points of {metric_name(metric)}"


def metric_name(metric: str) -> str:
    """A metric as sentences call it; `recall:<label>` is the recall of that label."""
    if metric.startswith("recall:"):
        return f"recall of {metric.removeprefix('recall:')}"
    return METRIC_NAMES.get(metric, metric)


def in_points(metric: str) -> bool:
    """Whether the metric is a share, which is shown in percent and its differences in points."""
    return metric not in ("mae", "mae_expected", "qwk", "nll", "brier")


def signed(metric: str, value: float) -> str:
    """A difference with its sign: points with one decimal, or the metric's own unit with three."""
    if in_points(metric):
        return story.points(value, sign=True)
    text = f"{value:+.3f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "−")


def span(metric: str, interval: tuple[float, float]) -> str:
    """An interval of differences."""
    return f"{signed(metric, interval[0])} to {signed(metric, interval[1])}"


def _side(settings: Mapping[str, Any], names: Mapping[tuple[str, str], str], part: str, one: Mapping[str, Any]) -> Side:
    setting = settings.get(one["setting"]) or {}
    system = (setting.get("systems") or {}).get(one["system"]) or {}
    kind = system.get("kind") or ("floor" if one["system"].startswith("floors/") else one["system"].partition("/")[0])
    name = names.get((part, one["setting"])) or cut(setting.get("name", one["setting"]), NAME)
    return Side(one["setting"], name, one["system"], kind, system.get("replace") or "none")


def _interval(pair: Sequence[float] | None) -> tuple[float, float] | None:
    return (pair[0], pair[1]) if pair else None


def _mirrored(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    return (-pair[1], -pair[0]) if pair else None


def _apart(pair: tuple[float, float] | None) -> bool:
    """The interval leaves zero out."""
    return pair is not None and (pair[0] > 0 or pair[1] < 0)


def _named(wanted: Mapping[str, Any] | None, known: Sequence[Finding]) -> Finding | None:
    if not wanted:
        return None
    sides = [(one["setting"], one["system"]) for one in (wanted["a"], wanted["b"])]
    for one in known:
        mine = [(side.setting, side.system) for side in (one.a, one.b)]
        if one.metric == wanted["metric"] and one.part == wanted["part"] and mine in (sides, sides[::-1]):
            return one if mine == sides else one.turned()
    return None


def _without(document: Mapping[str, Any]) -> Told:
    """A study whose headline could not be had, mostly because its cells failed or have no label_only arm."""
    done = sum(bool(one["systems"]) for one in document["settings"])
    if not done:
        return Told("nothing", "Nothing was measured.", "No cell of the study has finished.", (), None)
    sentence_ = (
        f"{done} of {len(document['settings'])} settings have figures, but no system with reasonings could be compared "
        "with label_only on the same rows and seeds."
    )
    return Told("unmeasured", story.UNMEASURED, sentence_, (), None)


def _where(document: Mapping[str, Any], found: Finding) -> list[str]:
    """In which of several settings the headline was found."""
    if len(document["settings"]) < 2 or not found.within:
        return []
    what = "runs" if document["kind"] == "compare" else "settings"
    return [f"This is {found.a.setting_name}, one of {len(document['settings'])} {what}; the others are below."]


def _few(found: Finding) -> list[str]:
    seeds = len(found.seeds)
    if seeds <= 1:
        return ["One seed: how much another training would differ was not measured, and may be as much as this."]
    said = []
    if found.case == "clear" and found.seed_ci95 and not _apart(found.seed_ci95):
        said.append(
            f"The seed-level interval does not leave zero out: with {seeds} seeds, a training yet to come may go "
            "the other way."
        )
    if found.by_seed and min(found.by_seed) < 0 < max(found.by_seed):
        each = ", ".join(signed(found.metric, one) for one in found.by_seed)
        said.append(f"The seeds do not agree on the direction: {each}.")
    if seeds < FEW_SEEDS and not said:
        said.append(f"{seeds} seeds are few: the seed-level interval is wide for that reason alone.")
    return said


def _control(found: Finding) -> list[str]:
    return [
        f"{one.system} was taught a control in the place of reasonings: {one.replace}, {_meaning(one.replace)}."
        for one in (found.a, found.b)
        if one.replace != "none"
    ]


def _meaning(kind: str) -> str:
    known = kind in controls.KINDS or controls.CORRUPT.fullmatch(kind)
    return controls.meaning(kind) if known else "as its config says"


def _floors(found: Finding, known: Sequence[Finding]) -> list[str]:
    """How the better side of the headline stands to the linear floor, where they were compared."""
    winner = found.a if found.gain >= 0 else found.b
    key = (winner.setting, winner.system)
    for one in known:
        if one.metric != found.metric or not one.within:
            continue
        turned = one if (one.a.setting, one.a.system) == key else one.turned()
        if (turned.a.setting, turned.a.system) == key and turned.b.system == "floors/linear":
            return [sentence(turned)]
    return []


def _sides(found: Finding) -> tuple[str, str]:
    """What a sentence calls both sides: systems where the setting is one, settings where the system is."""
    a, b = found.a, found.b
    if found.within:
        return a.name, b.name
    if a.system == b.system:
        return f"{a.system} with {a.setting_name}", b.setting_name
    return f"{a.name} with {a.setting_name}", f"{b.name} with {b.setting_name}"


def _visible(found: Finding) -> bool:
    return signed(found.metric, found.difference).strip("+−") not in ("0.0", "0.000")


def _capital(text: str) -> str:
    """The sentence with a capital, unless it begins with a key, which is written as it is."""
    first = text.split(maxsplit=1)[0]
    return text if "_" in first or "/" in first or "=" in first else text[0].upper() + text[1:]


def _forward(found: Finding) -> Finding:
    """Turned so that what learnt from reasonings is a."""
    return found.turned() if found.b.reasoned and not found.a.reasoned else found


def _of_one(rows: Sequence[Finding], system: str | None) -> list[Finding]:
    """The rows of one system: the one asked for, else the first that there is."""
    wanted = [one for one in rows if one.a.system == system]
    return wanted or [one for one in rows if one.a.system == rows[0].a.system]


def _tally(rows: Sequence[Finding], about: str) -> list[str]:
    """How many of the rows are clear gains, clear losses and open, with the largest of either."""
    if not rows:
        return []
    names = {one.a.name for one in rows}
    start = _capital(about.format(name=names.pop() if len(names) == 1 else rows[0].a.system))
    metric = metric_name(rows[0].metric)
    if len(rows) == 1:
        return [f"{start}: {_brief(rows[0])} of {metric}{_verdict(rows[0])}."]
    gains = [one for one in rows if one.case == "clear" and one.gain > 0]
    losses = [one for one in rows if one.case == "clear" and one.gain < 0]
    said = []
    for found, word in ((gains, "gain"), (losses, "loss")):
        if found:
            most = max(found, key=lambda one: abs(one.gain))
            largest = f"{'at most ' if len(found) > 1 else ''}{_brief(most)} with {most.a.setting_name}"
            said.append(f"a clear {word} in {_of(len(found), len(rows))} ({largest})")
    rest = len(rows) - len(gains) - len(losses)
    if rest:
        hints = sum(one.case == "hint" for one in rows)
        inner = f", of which {_hints(hints)}" if hints else ""
        # Of two seeds hardly anything can be said, and no share differs by more than all of it.
        seen = [one.mde for one in rows if one.case == "none" and one.mde is not None]
        widest = max((mde for mde in seen if mde < 1 or not in_points(rows[0].metric)), default=None)
        unit = amount_of(rows[0].metric, widest or 0.0).partition(" of ")[0]
        bound = f" (less than about {unit} could not be seen)" if widest else ""
        said.append(f"no clear difference in {_of(rest, len(rows))}{inner}{bound}")
    return [f"{start}, by {metric}: {'; '.join(said)}."]


def _brief(found: Finding) -> str:
    unit = " points" if in_points(found.metric) else ""
    inside = f" ({span(found.metric, found.ci95)})" if found.ci95 else ""
    return f"{signed(found.metric, found.difference)}{unit}{inside}"


def _verdict(found: Finding) -> str:
    if found.case == "clear":
        return ""
    return ", a hint but no finding" if found.case == "hint" else f", no difference shown{smallest(found)}"


def _of(some: int, all_: int) -> str:
    if some == all_:
        return "both settings" if all_ == 2 else f"all {all_} settings"
    return f"{some} of {all_} settings"


def _hints(count: int) -> str:
    return "one is a hint" if count == 1 else f"{count} are hints"


def _kept(setting: Mapping[str, Any]) -> float | None:
    value = (setting.get("reasonings") or {}).get("kept_share")
    return None if value is None else float(value)
